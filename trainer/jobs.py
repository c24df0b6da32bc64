"""What each kind of run means: which function of the trainer does it, on what, and what is handed over in the end.

Torch is loaded when the first run begins, so that a worker that only waits is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainer.artifacts import BadCheckpoint, CheckpointStore, model_source
from trainer.client import ClaimedRun, Client, Json, ModelReference
from trainer.reporting import Reporter, RunCancelled
from trainer.settings import SettingsError, WorkerSettings
from trainer.transport import Retries

if TYPE_CHECKING:
    from trainer.sampling import Prompt, Sampler
    from trainer.weights import ModelSource

UNUSABLE = "The last checkpoint can't be used, the run begins anew"
ENDPOINT_PATIENCE_SECONDS = 300.0
"""How long a server that samples may be away before the run fails."""


class JobReporter(Reporter, Protocol):
    """A reporter that sends what it hears, and says why the run should stop."""

    is_cancelled: bool
    is_fence_lost: bool

    def flush(self) -> None:
        """Send everything now."""


@dataclass(frozen=True)
class Job:
    """A claimed run with everything that a handler needs."""

    client: Client
    settings: WorkerSettings
    run: ClaimedRun
    report: JobReporter
    folder: Path
    """An empty folder for its files; gone afterwards."""

    @property
    def out(self) -> Path:
        """Where a training function writes the version's files."""
        return self.folder / "version"

    @property
    def config(self) -> dict[str, Any]:
        """The run's frozen config."""
        return self.run.claim["config"]


@dataclass(frozen=True)
class Outcome:
    """What a handler hands over: the run's result, and the folder whose files make a version of it."""

    result: dict[str, Any]
    folder: Path | None = None


Handler = Callable[[Job], Outcome]


class Result(Protocol):
    """What a training reports at its end."""

    def as_json(self) -> dict[str, Any]:
        """The result of docs/protocol.md."""
        ...


def sample(job: Job) -> Outcome:
    """K completions for every prompt that has none of this run; each prompt is delivered as soon as it is done."""
    from trainer.sampling import Prompt, SamplingSettings

    settings = SamplingSettings.from_json(job.config["sampling"])
    rows = list(job.run.prompts())
    waiting = [Prompt.from_json(row) for row in rows if not row["num_completions"]]
    num_done = len(rows) - len(waiting)
    sampler = make_sampler(job, job.config["policy"])
    refused: list[dict[str, str]] = []
    num_completions = num_duplicates = 0
    for sampled in sampler.sample(waiting, k=job.config["k"], settings=settings):
        num_done += 1
        if sampled.refusal is not None:
            refused.append({"prompt_id": sampled.prompt_id, "reason": sampled.refusal})
            job.report.log("warning", sampled.refusal)
        else:
            job.run.completions([completion.to_json() for completion in sampled.completions])
            num_completions += len(sampled.completions)
            num_duplicates += sampled.num_duplicates
            job.report.metrics(num_done, {"sample/tokens_per_second": sampler.tokens_per_second})
        job.report.progress(num_done, len(rows), f"{sampler.tokens_per_second:.0f} tokens a second")
        if job.report.should_stop():
            raise RunCancelled
    if num_duplicates:
        job.report.log("warning", f"{num_duplicates} of {num_completions} answers repeat another one of their prompt.")
    return Outcome(
        {
            "num_prompts": len(rows) - len(refused),
            "num_completions": num_completions + sum(row["num_completions"] for row in rows),
            "num_duplicates": num_duplicates,
            "tokens_per_second": round(sampler.tokens_per_second, 1),
            "refused": refused,
        }
    )


def reward(job: Job) -> Outcome:
    """A reward model from a frozen dataset, starting from the SFT version or from an earlier reward model."""
    from trainer.config import RewardConfig
    from trainer.reward import train_reward

    return fit(
        job,
        train_reward,
        dataset_rows(job),
        source=find_model(job, job.config["sft"]),
        start=find_model(job, job.config["start"]) if job.config.get("start") else None,
        config=RewardConfig.from_overrides(job.config["training"]),
        dataset_sha256=job.config["dataset"]["sha256"],
    )


def ppo(job: Job) -> Outcome:
    """A better policy against a reward model, perhaps with a guard. Length, temperature and seed are the project's."""
    from trainer.config import PPOConfig
    from trainer.ppo_run import train_ppo

    return fit(
        job,
        train_ppo,
        run_prompts(job),
        **find_models(job, "sft", "policy", "reward"),
        guard=find_model(job, job.config["guard"]) if job.config.get("guard") else None,
        config=PPOConfig.from_overrides(sampled_with(job) | job.config["training"]),
        ptx_texts=corpus_rows(job),
        liked_answers=liked_rows(job) if job.config.get("liked") else (),
    )


def sft(job: Job) -> Outcome:
    """A policy that imitates demonstrations and imported conversations."""
    from trainer.config import SFTConfig
    from trainer.sft import train_sft

    return fit(
        job,
        train_sft,
        corpus_rows(job),
        source=find_model(job, job.config["policy"]),
        config=SFTConfig.from_overrides(job.config["training"]),
    )


def dpo(job: Job) -> Outcome:
    """A policy straight from a frozen dataset of rankings."""
    from trainer.config import DPOConfig
    from trainer.dpo import train_dpo

    return fit(
        job,
        train_dpo,
        dataset_rows(job),
        **find_models(job, "sft", "policy"),
        config=DPOConfig.from_overrides(job.config["training"]),
        dataset_sha256=job.config["dataset"]["sha256"],
    )


def best_of_n(job: Job) -> Outcome:
    """A policy that imitates the best of its own answers."""
    from trainer.best_of_n import train_best_of_n
    from trainer.config import BestOfNConfig

    return fit(
        job,
        train_best_of_n,
        run_prompts(job),
        **find_models(job, "policy", "reward"),
        config=BestOfNConfig.from_overrides(sampled_with(job) | job.config["training"]),
    )


def star(job: Job) -> Outcome:
    """The SFT policy, trained on those of the live policy's answers that pass the check of their prompt."""
    from trainer.config import StarConfig
    from trainer.star import CheckedPrompt, train_star

    return fit(
        job,
        train_star,
        [CheckedPrompt.from_json(row) for row in job.run.prompts()],
        **find_models(job, "sft", "policy"),
        config=StarConfig.from_overrides(sampled_with(job) | job.config["training"]),
    )


def score(job: Job) -> Outcome:
    """What several reward models say of the same held-out rankings."""
    from trainer.judging import judge

    sources = [find_model(job, reference) for reference in job.config["rewards"]]
    found = judge(dataset_rows(job), sources, report=job.report, device=job.settings.torch_device())
    return Outcome(found)


def judge(job: Job) -> Outcome:
    """What a reward model says of answers that nobody has ranked yet."""
    from trainer.judging import judge_answers

    found = judge_answers(
        job.run.answers(),
        find_model(job, job.config["reward"]),
        seen=dataset_rows(job) if job.config["dataset"] else (),
        report=job.report,
        device=job.settings.torch_device(),
    )
    return Outcome(found)


HANDLERS: dict[str, Handler] = {
    "sample": sample,
    "evaluate": sample,
    "reward": reward,
    "score": score,
    "judge": judge,
    "ppo": ppo,
    "sft": sft,
    "dpo": dpo,
    "best_of_n": best_of_n,
    "star": star,
}

SPLIT_KINDS = ("reward", "ppo", "sft", "dpo", "best_of_n", "star")
"""What several processes can do together."""


def do(job: Job) -> Outcome:
    """Dispatch by kind, on as many CPU threads as the settings say."""
    if job.settings.threads is not None:
        import torch

        torch.set_num_threads(job.settings.threads)
    return HANDLERS[job.run.claim["kind"]](job)


def make_sampler(job: Job, reference: ModelReference) -> Sampler:
    """The server that the worker's list names for this model, or the model itself in this process."""
    from trainer.openai_sampler import OpenAISampler
    from trainer.sampling import LocalSampler
    from trainer.weights import load_causal_lm, load_tokenizer

    endpoint = job.settings.find_model(reference["alias"]).endpoint
    if endpoint is None:
        source = find_model(job, reference)
        return LocalSampler(load_causal_lm(source, device=job.settings.torch_device()), load_tokenizer(source))
    if reference["files"]:
        raise SettingsError(
            f"Version {reference['number']} has weights of its own, and “{reference['alias']}” is listed as a server, "
            "which only has the base model. List a folder or a hub id for it."
        )
    return OpenAISampler(endpoint, retries=Retries(ENDPOINT_PATIENCE_SECONDS))


def find_model(job: Job, reference: ModelReference) -> ModelSource:
    """The weights of a model reference, fetched where they are not here yet."""

    def progress(message: str, share: float) -> None:
        job.report.progress(round(100 * share), 100, message)

    return model_source(reference, job.client, job.settings, progress)


def find_models(job: Job, *roles: str) -> dict[str, ModelSource]:
    """The models that a config names, by their roles."""
    return {role: find_model(job, job.config[role]) for role in roles}


def run_prompts(job: Job) -> list[Prompt]:
    """The run's frozen prompts."""
    from trainer.sampling import Prompt

    return [Prompt.from_json(row) for row in job.run.prompts()]


def dataset_rows(job: Job) -> list[Json]:
    """The frozen rankings that the config names, checked."""
    dataset = job.config["dataset"]
    return list(job.client.dataset_rows(dataset["id"], sha256=dataset["sha256"]))


def liked_rows(job: Job) -> list[Json]:
    """The answers that people liked best in the frozen rankings that the config names, checked."""
    from trainer.preferences import liked, to_rankings

    dataset = job.config["liked"]
    return liked(to_rankings(job.client.dataset_rows(dataset["id"], sha256=dataset["sha256"])))


def corpus_rows(job: Job) -> list[Json]:
    """The rows of every corpus that the config names, checked; none when it names none."""
    return [
        row
        for corpus in job.config.get("corpora", ())
        for row in job.client.corpus_rows(corpus["id"], sha256=corpus["sha256"])
    ]


def sampled_with(job: Job) -> dict[str, Any]:
    """What a training that draws answers takes from the project's sampling."""
    return {name: job.config["sampling"][name] for name in ("max_new_tokens", "temperature", "seed")}


def fit(job: Job, train: Callable[..., Result], data: Sequence[Any], **arguments: Any) -> Outcome:
    """Train on the job's device, from where an earlier attempt got to."""
    begun = partial(train, data, **arguments, out=job.out, report=job.report, device=job.settings.torch_device())
    return Outcome(go_on(job, begun), job.out)


def go_on(job: Job, train: Callable[..., Result]) -> dict[str, Any]:
    """Train from where an earlier attempt got to. A checkpoint that can't be used is said and ignored.

    Returns the result of docs/protocol.md.
    """
    from trainer.checkpoints import CheckpointError

    store = CheckpointStore(job.run)

    def deliver(folder: Path) -> None:
        if store.is_due:
            # First what was reported so far: curves have no hole when the run goes on from this checkpoint.
            job.report.flush()
            store.deliver(folder)

    last = _last_checkpoint(job, store)
    try:
        if last is not None:
            job.report.log("info", "Goes on from the last checkpoint.")
            return train(on_checkpoint=deliver, resume_from=last).as_json()
    except CheckpointError as error:
        job.report.log("warning", f"{UNUSABLE}: {error}")
    return train(on_checkpoint=deliver).as_json()


def _last_checkpoint(job: Job, store: CheckpointStore) -> Path | None:
    """The folder of the last checkpoint. Where several processes train, the first one fetches it for all of them."""
    from trainer.distributed import add_up, world

    folder = job.folder / "checkpoint"
    is_there = False
    if world().is_first:
        try:
            is_there = store.fetch(folder) is not None
        except BadCheckpoint as error:
            job.report.log("warning", f"{UNUSABLE}: {error}")
    return folder if add_up(float(is_there))[0] else None
