"""Annotators with a known utility rank through the REST API, so that the loop can be run and measured without people.

`rank_waiting` plays annotators on any server. `run_loop` turns whole rounds of the pocket model and compares the first
policy's answers to held-out prompts with the last one's, by the true utility, which no part of the loop ever sees.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.client import Client
from trainer.pocket.utility import rank, utility
from trainer.pocket.world import held_out_requests

Say = Callable[[str], None]
Utilities = dict[str, list[float]]

POLL_SECONDS = 0.5
NUM_PROMPTS = 400
PROMPT_SEED = 2026
NUM_RESAMPLES = 10_000
# A third of the prompts is held out from sampling, ranking and training; they measure.
SHARES = {"validation_share": 0.1, "test_share": 0.34}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 128}


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


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, by bootstrap over prompts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class LoopResult:
    """What rounds of the loop did, on held-out prompts. Utilities are the world's own; `kl` is in nats an answer."""

    rounds: int
    seeds: int
    num_prompts: int
    num_rankings: int
    utility: dict[str, Interval]
    win_rate: Interval
    kl: float
    by_round: list[float]
    accuracy: list[float | None]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`; the last three are the final figures."""
        figures = asdict(self)
        final = {name: figures.pop(name) for name in ("win_rate", "utility", "kl")}
        return figures | final


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


def rank_waiting(url: str, tokens: Sequence[str], project_id: str, annotators: Annotators) -> int:
    """Let the people take turns until nothing waits for any of them; returns how many tasks they ranked."""
    clients = [Client(url, token) for token in tokens]
    rngs = [random.Random(f"annotator {annotators.seed} {number}") for number in range(len(clients))]
    num_ranked = 0
    try:
        idle = 0
        while idle < len(clients):
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


def run_loop(
    client: Client, url: str, *, rounds: int, seeds: int, annotators: Annotators, training: Mapping[str, Any], say: Say
) -> LoopResult:
    """Turn the loop `rounds` times in a project of its own for each seed; all on the same prompts.

    Raises:
        RunFailed: a run ended otherwise than finished.
    """
    started = time.monotonic()
    tokens = hire(client, annotators)
    stories = [Story(client, url, tokens, seed, annotators, training, say).turn(rounds) for seed in range(1, seeds + 1)]
    first = pooled([story.utilities[0] for story in stories])
    last = pooled([story.utilities[-1] for story in stories])
    rng = random.Random(PROMPT_SEED)
    gains = [mean(last[prompt]) - mean(first[prompt]) for prompt in sorted(first)]
    wins = [share_of_wins(last[prompt], first[prompt]) for prompt in sorted(first)]
    means = {"sft": bootstrap([mean(first[prompt]) for prompt in sorted(first)], rng)}
    means |= {"final": bootstrap([mean(last[prompt]) for prompt in sorted(last)], rng), "gain": bootstrap(gains, rng)}
    return LoopResult(
        rounds=rounds,
        seeds=seeds,
        num_prompts=len(first),
        num_rankings=sum(story.num_rankings for story in stories),
        utility=means,
        win_rate=bootstrap(wins, rng),
        kl=round(mean([story.kl for story in stories]), 3),
        by_round=[round(mean_utility([story.utilities[turn] for story in stories]), 4) for turn in range(rounds + 1)],
        accuracy=[story.accuracies[turn] for story in stories for turn in range(rounds)],
        seconds=round(time.monotonic() - started, 1),
    )


class Story:
    """The loop of one seed: its project, and what was measured before the first round and after each."""

    def __init__(
        self,
        client: Client,
        url: str,
        tokens: Sequence[str],
        seed: int,
        annotators: Annotators,
        training: Mapping[str, Any],
        say: Say,
    ) -> None:
        self._client = client
        self._url = url
        self._tokens = tokens
        self._seed = seed
        self._annotators = annotators
        self._training = training
        self._say = say
        self._project = ""
        self.utilities: list[Utilities] = []
        self.accuracies: list[float | None] = []
        self.num_rankings = 0
        self.kl = 0.0

    def turn(self, rounds: int) -> Story:
        """Make the project, measure the SFT policy, then sample, rank, train and measure again."""
        self._project = self._make_project()
        self._measure("SFT")
        sampling = self._client.start_sampling(self._project)
        for number in range(1, rounds + 1):
            self._finished(sampling["id"])
            people = Annotators(**asdict(self._annotators) | {"seed": 1000 * self._seed + number})
            self.num_rankings += rank_waiting(self._url, self._tokens, self._project, people)
            self._client.start_training(self._project)
            reward = self._finished(self._newest("reward"))
            ppo = self._finished(self._newest("ppo"))
            accuracy = reward["result"]["accuracy"]
            self.accuracies.append(accuracy["value"] if accuracy else None)
            self.kl = ppo["result"]["kl"]
            sampling = {"id": self._newest("sample")}
            self._measure(f"round {number}, KL {self.kl:.2f}")
        return self

    def _make_project(self) -> str:
        sampling = SAMPLING | {"seed": 1000 * self._seed}
        training = {kind: {"seed": self._seed, **self._training.get(kind, {})} for kind in ("reward", "ppo")}
        project = self._client.create_project(
            name=f"Simulated loop {self._seed} {secrets.token_hex(3)}",
            model_alias="pocket",
            k=4,
            sampling=sampling,
            training=training,
            # What the loop does by itself is measured, not what its gates keep back.
            reward_gate="off",
            **SHARES,
        )
        requests = held_out_requests(NUM_PROMPTS, PROMPT_SEED)
        lines = [
            json.dumps({"prompt": request.prompt, "language": request.language, "source": "pocket world"})
            for request in requests
        ]
        self._client.import_prompts(project["id"], lines)
        return str(project["id"])

    def _measure(self, when: str) -> None:
        """The live policy answers the test prompts; the true utility of each answer, by prompt."""
        run = self._finished(self._client.start_evaluation(self._project)["id"])
        version_id = run["config"]["policy"]["version_id"]
        found: Utilities = {}
        for answer in self._client.completions(self._project, version_id=version_id, split="test"):
            prompt = answer["messages"][-1]["content"]
            found.setdefault(prompt, []).append(utility(prompt, answer["text"]))
        self.utilities.append(found)
        self._say(f"seed {self._seed}, {when}: utility {mean_utility([found]):.3f}")

    def _newest(self, kind: str) -> str:
        """The newest run of a kind. What follows from a run is queued in the transaction that ends it."""
        return str(next(run["id"] for run in self._client.list_runs(self._project) if run["kind"] == kind))

    def _finished(self, run_id: str) -> dict[str, Any]:
        """Wait for a run's good end."""
        while True:
            run = self._client.get_run(run_id)
            if run["state"] == "finished":
                return run
            if run["state"] in {"failed", "cancelled"}:
                raise RunFailed(f"The {run['kind']} run {run_id} {run['state']}: {run['error']}")
            time.sleep(POLL_SECONDS)


# Figures


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def mean_utility(measured: Sequence[Utilities]) -> float:
    """The mean over prompts of the mean over answers."""
    return mean([mean(values) for utilities in measured for values in utilities.values()])


def pooled(measured: Sequence[Utilities]) -> Utilities:
    """The answers of all seeds to the same prompt together: prompts are what the interval resamples."""
    together: Utilities = {}
    for utilities in measured:
        for prompt, values in utilities.items():
            together.setdefault(prompt, []).extend(values)
    return together


def share_of_wins(after: Sequence[float], before: Sequence[float]) -> float:
    """How often an answer of `after` beats one of `before`, over all pairs; a tie is half a win."""
    points = [1.0 if new > old else 0.5 if new == old else 0.0 for new in after for old in before]
    return mean(points)


def bootstrap(values: Sequence[float], rng: random.Random) -> Interval:
    """The mean of one value a prompt, with a 95 % percentile interval over resampled prompts."""
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES))
    low, high = means[int(0.025 * NUM_RESAMPLES)], means[int(0.975 * NUM_RESAMPLES) - 1]
    return Interval(round(mean(values), 4), round(low, 4), round(high, 4))
