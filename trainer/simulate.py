"""Annotators with a known utility rank through the REST API, so that the loop can be run and measured without people.

`rank_waiting` plays annotators on any server. `run_loop` turns whole rounds of the pocket model; what became of it,
`simulate_exam` asks the true utility, which no part of the loop ever sees.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trainer.client import Client
from trainer.pocket.utility import rank, utility
from trainer.pocket.world import familiar_requests, held_out_requests, is_held_out
from trainer.simulate_exam import Exam, FindModel, Marks, RewardMarks, reward_marks

if TYPE_CHECKING:
    from trainer.weights import ModelSource

Say = Callable[[str], None]

POLL_SECONDS = 0.5
REST_SECONDS = 2.0
"""Before people look again who found nothing."""
NUM_PROMPTS = 640
PROMPT_SEED = 2026
K = 8
PEOPLE = 3
"""That rank each task. A second ranking of the same answers costs clicks, and no sampling and hardly any training."""
SHARES = {"validation_share": 0.1, "test_share": 0.2}
"""A fifth of the prompts is held out from sampling, ranking and training, and measures the policies; a tenth measures
the reward models."""
TEMPERATURE = 0.7
"""As many products sample; PPO takes the project's. At 1, a model this small slips in every other long answer, and what
it learns from noisy people is hardly better than the slips."""
SAMPLING = {"temperature": TEMPERATURE, "top_p": 1.0, "max_new_tokens": 128}


class RunFailed(ValueError):
    """A run of the simulated loop did not end well; the message has its cause."""


@dataclass(frozen=True)
class Annotators:
    """How simulated people judge: how many they are, how noisy, and below which difference they see a tie.

    With noise 0.5 two of them agree on about three pairs in four, as people do (InstructGPT: 72.6 %).
    """

    num: int = 5
    noise: float = 0.5
    tie_margin: float = 0.1
    seed: int = 17


# Annotators


def hire(client: Client, annotators: Annotators, project_id: str | None = None) -> list[str]:
    """Make annotators of a project, or of every one, and their tokens, as an owner of the site; returns the tokens."""
    tokens = []
    role = "annotator" if project_id is None else None
    for number in range(1, annotators.num + 1):
        email = f"simulated-{secrets.token_hex(4)}@localhost"
        user = client.create_user(name=f"Simulated {number}", email=email, role=role, is_simulated=True)
        if project_id is not None:
            client.set_member(project_id, user["id"], role="annotator")
        made = client.create_token(user_id=user["id"], name="rankloop simulate", scopes=["annotate"], days=1)
        tokens.append(made["token"])
    return tokens


def rank_waiting(
    url: str,
    tokens: Sequence[str],
    project_id: str,
    annotators: Annotators,
    *,
    may_come: Callable[[], bool] = lambda: False,
) -> int:
    """Let the people take turns until nothing waits for any of them, and nothing `may_come` any more.

    Returns how many tasks they ranked.
    """
    clients = [Client(url, token) for token in tokens]
    rngs = [random.Random(f"annotator {annotators.seed} {number}") for number in range(len(clients))]
    num_ranked = 0
    try:
        idle = 0
        # Asked before they look: what came until then, they find.
        is_more_coming = may_come()
        while idle < len(clients) or is_more_coming:
            if idle == len(clients):
                time.sleep(REST_SECONDS)
                idle, is_more_coming = 0, may_come()
            turn = num_ranked % len(clients)
            is_done = rank_one(clients[turn], project_id, rngs[turn], annotators)
            idle = 0 if is_done else idle + 1
            num_ranked += is_done
            if not is_done:
                clients.append(clients.pop(turn))
                rngs.append(rngs.pop(turn))
    finally:
        for client in clients:
            client.close()
    return num_ranked


def rank_one(client: Client, project_id: str, rng: random.Random, annotators: Annotators) -> bool:
    """Take the next task and answer it by utility and noise; False when none waits."""
    lease = client.next_task(project_id)
    if lease is None:
        return False
    prompt = lease["messages"][-1]["content"]
    ids = [card["id"] for card in lease["completions"]]
    utilities = [utility(prompt, card["text"]) for card in lease["completions"]]
    cells = rank(utilities, rng, noise=annotators.noise, tie_margin=annotators.tie_margin)
    if not lease["ties_allowed"]:
        cells = [[index] for cell in cells for index in cell]
    client.submit_ranking(lease["lease_id"], {"order": [[ids[index] for index in cell] for cell in cells]})
    return True


# Rounds


@dataclass(frozen=True)
class Loop:
    """What all seeds of a simulation share."""

    client: Client
    url: str
    tokens: Sequence[str]
    annotators: Annotators
    training: Mapping[str, Any]
    find_model: FindModel
    say: Say
    num_prompts: int = NUM_PROMPTS


@dataclass(frozen=True)
class SeedMarks:
    """What the truth says of one seed's loop: of the SFT policy, and of each round's policy and reward model."""

    sft: Marks
    ceiling: Marks
    best_of_16: Marks
    """By the last reward model."""
    rounds: Sequence[Marks]
    rewards: Sequence[RewardMarks]
    kl: Sequence[float]
    """Nats an answer, after each round."""
    num_rankings: int


def run_loop(loop: Loop, *, rounds: int, seeds: int) -> Iterator[SeedMarks]:
    """Turn the loop `rounds` times in a project of its own for each seed; all on the same prompts.

    Raises:
        RunFailed: a run ended otherwise than finished.
    """
    for seed in range(1, seeds + 1):
        yield Story(loop, seed).turn(rounds)


class Story:
    """The loop of one seed: its project, and the exams that its policies sat."""

    def __init__(self, loop: Loop, seed: int) -> None:
        self._loop = loop
        self._client = loop.client
        self._seed = seed
        self._project = ""

    def turn(self, rounds: int) -> SeedMarks:
        """Make the project; then sample, rank, train and examine, `rounds` times.

        The loop waits for no exam: these are sat one after another, in their order, while it goes on.
        """
        desk = ThreadPoolExecutor(max_workers=1, initializer=_compute_alone)
        try:
            return self._turn(rounds, desk)
        finally:
            desk.shutdown(cancel_futures=True)

    def _turn(self, rounds: int, desk: Executor) -> SeedMarks:
        self._project = self._make_project()
        sampling = self._client.start_sampling(self._project)
        sft = self._loop.find_model(sampling["config"]["policy"])
        exam = desk.submit(self._make_exam, self._test_prompts(), sft)
        turned: list[tuple[Future[Marks], RewardMarks, float]] = []
        num_rankings = 0
        for number in range(1, rounds + 1):
            num_rankings += self._rank(number)
            turned.append(self._train(desk, exam, number))
        # The last policy's answers, which nobody ranks.
        self._client.cancel_run(self._newest("sample")["id"])
        sat, rewards, kl = zip(*turned, strict=True)
        last = self._loop.find_model(self._newest("ppo")["config"]["reward"])
        best = desk.submit(lambda: exam.result().best_of_16(last)).result()
        marks = [future.result() for future in sat]
        return SeedMarks(exam.result().sft, exam.result().ceiling, best, marks, rewards, kl, num_rankings)

    def _rank(self, number: int) -> int:
        """People rank what the round's policy answers, while it does."""
        people = Annotators(**asdict(self._loop.annotators) | {"seed": 1000 * self._seed + number})
        run_id = self._newest("sample")["id"]
        return rank_waiting(
            self._loop.url, self._loop.tokens, self._project, people, may_come=lambda: not self._is_finished(run_id)
        )

    def _train(self, desk: Executor, exam: Future[Exam], number: int) -> tuple[Future[Marks], RewardMarks, float]:
        """A round's two trainings, and what the truth says of what came out."""
        self._client.start_training(self._project)
        reward = self._finished(self._newest("reward")["id"])
        rows = self._client.dataset_rows(reward["config"]["dataset"]["id"])
        judged = reward_marks(rows, reward["result"]["accuracy"]["value"])
        kl = self._finished(self._newest("ppo")["id"])["result"]["kl"]
        policy = self._loop.find_model(self._newest("sample")["config"]["policy"])

        def sit() -> Marks:
            marks = exam.result().sit(policy)
            self._say(
                f"round {number}: utility {marks.utility:.3f}, win rate {marks.win_rate:.1%}, KL {kl:.2f}; "
                f"the reward model is right on {judged.reward:.1%}, the truth on {judged.truth:.1%} of held-out pairs"
            )
            return marks

        return desk.submit(sit), judged, kl

    def _make_project(self) -> str:
        training = {kind: {"seed": self._seed, **self._loop.training.get(kind, {})} for kind in ("reward", "ppo")}
        project = self._client.create_project(
            name=f"Simulated loop {self._seed} {secrets.token_hex(3)}",
            model_alias="pocket",
            k=K,
            overlap=min(PEOPLE, self._loop.annotators.num),
            sampling=SAMPLING | {"seed": 1000 * self._seed},
            training=training,
            # What an earlier reward model had wrong is unlearned: each round's policy begins with the SFT policy.
            policy_start="sft",
            # What it learned of the rankings of all rounds is kept: a round costs one more reading of them.
            reward_start="live",
            # What the loop does by itself is measured, not what its gates keep back.
            reward_gate="off",
            **SHARES,
        )
        held_out = held_out_requests(self._loop.num_prompts, PROMPT_SEED)
        lines = [
            json.dumps({"prompt": request.prompt, "language": request.language, "source": "pocket world"})
            # What is asked seldom is learned from few answers: an admin would add prompts of these kinds.
            for request in [*held_out, *familiar_requests(held_out, PROMPT_SEED)]
        ]
        self._client.import_prompts(project["id"], lines)
        return str(project["id"])

    def _test_prompts(self) -> list[str]:
        """Nothing is sampled for annotators, or trained, on those, and the SFT policy's text has none of them."""
        rows = self._client.list_prompts(self._project, split="test")
        return [prompt for row in rows if is_held_out(prompt := row["messages"][-1]["content"])]

    def _make_exam(self, prompts: Sequence[str], sft: ModelSource) -> Exam:
        """What all policies are asked, and the SFT policy's answers."""
        margin = self._loop.annotators.tie_margin
        exam = Exam(prompts, sft, sampling=SAMPLING, tie_margin=margin, seed=1000 * self._seed)
        self._say(f"SFT: utility {exam.sft.utility:.3f}; ceiling of the win rate {exam.ceiling.win_rate:.1%}")
        return exam

    def _say(self, text: str) -> None:
        self._loop.say(f"seed {self._seed}, {text}")

    def _newest(self, kind: str) -> dict[str, Any]:
        """The newest run of a kind. What follows from a run is queued in the transaction that ends it."""
        return next(run for run in self._client.list_runs(self._project) if run["kind"] == kind)

    def _finished(self, run_id: str) -> dict[str, Any]:
        """Wait for a run's good end."""
        while not self._is_finished(run_id):
            time.sleep(POLL_SECONDS)
        return self._client.get_run(run_id)

    def _is_finished(self, run_id: str) -> bool:
        """Whether a run has come to its good end; RunFailed where it came to another."""
        run = self._client.get_run(run_id)
        if run["state"] in {"failed", "cancelled"}:
            raise RunFailed(f"The {run['kind']} run {run_id} {run['state']}: {run['error']}")
        return bool(run["state"] == "finished")


def _compute_alone() -> None:
    """One thread of torch's: the other cores have the worker, the web and the database."""
    import torch

    torch.set_num_threads(1)
