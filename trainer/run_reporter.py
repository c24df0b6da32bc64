"""What the worker's own thread does during a run: it keeps the lease, hears of cancel requests, and sends metrics and
log lines in batches. It survives an app that is away for a while; nothing that was reported is lost by that."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from trainer.client import ApiError, ClaimedRun, FenceLost, Json, LogLine, MetricPoint, Progress, Unreachable
from trainer.logs import why
from trainer.reporting import Level, storable

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
MAX_LINES = 500
MAX_POINTS = 2_000
MAX_LINE_CHARACTERS = 10_000
MAX_MESSAGE_CHARACTERS = 200

Report = TypeVar("Report", MetricPoint, LogLine)


class RunReporter:
    """The `Reporter` of a claimed run. A context manager: its thread runs within the block."""

    def __init__(self, run: ClaimedRun, is_stopping: Callable[[], bool], *, tick_seconds: float = TICK_SECONDS) -> None:
        self.is_cancelled = False
        self.is_fence_lost = False
        self._run = run
        self._is_stopping = is_stopping
        self._tick_seconds = tick_seconds
        self._points: list[MetricPoint] = []
        self._lines: list[LogLine] = []
        self._progress: Progress | None = None
        self._is_progress_new = False
        self._began = (0, -1, 0.0)  # step, total, when
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._has_ended = False
        self._beat_seconds = run.claim["lease_seconds"] / 3
        self._next_beat = time.monotonic() + self._beat_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_talking, name=f"run-{run.claim['id']}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    # The Reporter protocol

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of named curves. What is no finite number can't be drawn, and is said in the log instead."""
        for name, value in values.items():
            if not math.isfinite(value):
                self.log("warning", f"{name} is {value} at step {step}.")
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        points: list[MetricPoint] = [{"step": step, "name": name, "value": value} for name, value in finite.items()]
        with self._lock:
            self._points += points

    def progress(self, step: int, total: int, message: str) -> None:
        """`step` of `total` is done; the time that is left follows from the pace so far."""
        now = time.monotonic()
        with self._lock:
            if step < self._began[0] or total != self._began[1]:
                self._began = step, total, now
            first, _, began = self._began
            eta = (now - began) / (step - first) * (total - step) if step > first else None
            self._progress = {
                "step": step,
                "total": total,
                "message": message[:MAX_MESSAGE_CHARACTERS],
                "eta_seconds": eta,
            }
            self._is_progress_new = True

    def log(self, level: Level, text: str) -> None:
        """One line for the run's log, which may hold what people wrote: so it is no line of the worker's."""
        logger.debug("%s: %s", level, text, extra={"event": "run_log"})
        with self._lock:
            self._lines.append({"level": level, "text": storable(text)[:MAX_LINE_CHARACTERS]})

    def should_stop(self) -> bool:
        """Whether the run was cancelled or given to another worker, or this worker shuts down."""
        return self.is_cancelled or self.is_fence_lost or self._is_stopping()

    # Sending

    def flush(self) -> None:
        """Send everything now, with the client's whole patience. Raises FenceLost, Unreachable."""
        self._send_reports(patience=None)

    def finish(
        self, state: str, *, result: Json | None = None, artifacts: Sequence[str] = (), error: str | None = None
    ) -> None:
        """End the run as `finished`, `failed` or `cancelled`. Raises FenceLost, Unreachable, ApiError."""
        with self._ending:
            self._run.finish(state, result=result, artifacts=artifacts, error=error)
            self._has_ended = True

    def release(self) -> None:
        """Hand the run back to the queue. Raises as `finish` does."""
        with self._ending:
            self._run.release()
            self._has_ended = True

    def _keep_talking(self) -> None:
        """Until the block ends or the run is lost. Whatever else goes wrong, the lease is kept."""
        trouble = ""
        while not self._done.wait(self._tick_seconds):
            try:
                self._beat_if_due()
                self._send_reports(patience=0)
                trouble = ""
            except FenceLost as error:
                self._note_loss(error)
                return
            except (Unreachable, ApiError) as error:
                if not trouble:
                    text = "the run goes on, but its reports wait: %s"
                    logger.warning(text, why(error), extra={"event": "reports_wait"})
                trouble = "away"
            except Exception as error:
                if trouble != repr(error):
                    logger.exception("the run goes on, but a report can't be sent", extra={"event": "report_lost"})
                trouble = repr(error)

    def _note_loss(self, error: FenceLost) -> None:
        """A sign of life that crossed the run's last word on its way is refused, too, and nothing is lost by that."""
        with self._ending:
            if self._has_ended:
                return
        self.is_fence_lost = True
        logger.warning("the run is lost: %s", why(error), extra={"event": "run_lost"})

    def _beat_if_due(self) -> None:
        with self._lock:
            progress, is_new = self._progress, self._is_progress_new
            self._is_progress_new = False
        if not is_new and time.monotonic() < self._next_beat:
            return
        answer = self._run.heartbeat(progress)
        self._beat_seconds = answer["lease_seconds"] / 3
        self._next_beat = time.monotonic() + self._beat_seconds
        self.is_cancelled = self.is_cancelled or answer["cancel_requested"]

    def _send_reports(self, *, patience: float | None) -> None:
        with self._sending:
            self._send_all(self._points, MAX_POINTS, partial(self._run.metrics, patience=patience))
            self._send_all(self._lines, MAX_LINES, partial(self._run.log, patience=patience))

    def _send_all(self, waiting: list[Report], limit: int, send: Callable[[Sequence[Report]], None]) -> None:
        """Send what waits, some at a time. A batch that the app will never take must not hold up what comes after."""
        while batch := waiting[:limit]:
            try:
                send(batch)
            except ApiError as error:
                if error.status not in {400, 413, 422}:
                    raise
                logger.warning("the app refused a report: %s", why(error), extra={"event": "report_refused"})
            with self._lock:
                del waiting[: len(batch)]
