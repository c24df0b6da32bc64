"""The settings of the training runs: frozen, checked, and with the paper's value below each field.

IG = InstructGPT (arXiv 2203.02155), N+ = The N+ implementation details of RLHF with PPO (2403.17031). A field that is
`None` or "auto" is chosen for the model and the device by `for_model`; training functions call it first."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

LARGE_MODEL_PARAMETERS = 50_000_000
"""From this size on, a CPU trains LoRA on the last blocks instead of full weights."""


PAPER_PTX_COEFFICIENT = 27.8
"""Of PPO-ptx in InstructGPT; the command line takes it where it is given text."""

MANY_RANKINGS, MOST_EPOCHS = 1_200, 3
"""A reward model reads its rankings so often that it sees this many, but each at most so often."""


@dataclass(frozen=True)
class _Config:
    @classmethod
    def from_overrides(cls, overrides: Mapping[str, Any]) -> Self:
        """The defaults with `overrides` (parsed JSON) on top; ValueError names an unknown key or a wrong type."""
        hints = typing.get_type_hints(cls)
        unknown = sorted(set(overrides) - set(hints))
        if unknown:
            raise ValueError(
                f"training: unknown key {', '.join(unknown)}; {cls.__name__} has {', '.join(sorted(hints))}"
            )
        return cls(**{name: _parse(name, value, hints[name]) for name, value in overrides.items()})

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_overrides` takes back."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LoraConfig(_Config):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of the last blocks."""

    rank: int = 16
    """IG trains full weights; 16 serves a policy that moves a few nats."""
    alpha: int = 32
    """Twice the rank, as is usual."""
    num_last_blocks: int = 4
    """Only these blocks learn, so that nothing below them needs a backward pass."""

    def __post_init__(self) -> None:
        _require_positive(self, "rank", "alpha", "num_last_blocks")


Lora = LoraConfig | None | Literal["auto"]
Precision = Literal["auto", "float32", "bfloat16"]
Sharding = Literal["none", "full"]


@dataclass(frozen=True)
class FitConfig(_Config):
    """What the settings of SFT, DPO and the reward model share: one loop over data that is there."""

    _RATES = {"adapters": 0.0, "small": 0.0, "large": 0.0}  # noqa: RUF012 (no field)

    lora: Lora = "auto"
    """The papers: full weights (null). "auto": adapters for a large model on a CPU, else full weights."""
    learning_rate: float | None = None
    """null: by what learns and how large the model is."""
    final_learning_rate_ratio: float = 0.1
    """IG: cosine down to 10 %."""
    warmup_ratio: float = 0.05
    """The share of steps over which the rate rises from zero."""
    max_length: int | None = None
    """IG: 2,048 tokens of prompt and answer. null: that, or the model's context where it is shorter. What is longer is
    refused."""
    adam_beta2: float = 0.999
    """N+: 0.999, Adam's own."""
    adam_eps: float = 1e-5
    """N+: 1e-5 (1e-8 learns worse in small batches)."""
    max_grad_norm: float = 1.0
    """IG does not say."""
    precision: Precision = "auto"
    """IG: fp16 with fp32 weights. "bfloat16": products of matrices in the transformer only. "auto": that on a GPU,
    float32 on a CPU."""
    gradient_checkpointing: bool = False
    """Memory only: blocks are computed again in the backward pass, about a third more time."""
    sharding: Sharding = "none"
    """Memory only, under torchrun. "full": weights, gradients and moments are spread over the processes (FSDP2)."""
    tokens_per_forward: int = 2048
    """Memory and speed only: tokens, or one task, that are in memory at once; a step adds up what it needs."""
    checkpoint_every: int = 20
    """Steps between two checkpoints."""
    seed: int = 17
    """Head, adapters and the order of the data."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "max_length", "adam_eps", "max_grad_norm", "tokens_per_forward")
        _require_positive(self, "checkpoint_every")
        _require_between(self, 0, 1, "final_learning_rate_ratio", "warmup_ratio", "adam_beta2")
        _require_between(self, 0, math.inf, "seed")

    def for_model(self, num_parameters: int, device: str) -> Self:
        """The same settings with every automatic field filled in for a model of this size on "cpu" or "cuda"."""
        lora = _choose_lora(self.lora, num_parameters, device)
        rate = self.learning_rate or _choose_rate(lora, num_parameters, **self._RATES)
        precision = _choose_precision(self.precision, device)
        return dataclasses.replace(self, lora=lora, learning_rate=rate, precision=precision)


@dataclass(frozen=True)
class RewardConfig(FitConfig):
    """Settings of a `reward` run. IG's rate: 9e-6 for 6B."""

    _RATES = {"adapters": 1e-3, "small": 1e-3, "large": 9e-6}  # noqa: RUF012 (no field)

    epochs: int | None = None
    """IG: 1; more overfits, it says, with its 33,000 prompts. null: 3 for up to 400 rankings, fewer for more."""
    warm_epochs: int | None = None
    """IG: none goes on from another. Instead of `epochs` where one does, which has read most rankings before. null:
    `epochs`."""
    replay_share: float = 1.0
    """IG: 1. Where one goes on from another: of the prompts that earlier policies answered, the share whose rankings it
    reads again (experience replay, arXiv 1811.11682), drawn by the seed; those of the newest policy it reads all."""
    rankings_per_batch: int = 8
    """IG: 64 rankings, up to 2,304 comparisons. Fewer here, because a project starts with tens of rankings. Rankings of
    the same answers stay together, so that a batch may hold a few more."""
    loss: Literal["pairs", "plackett_luce"] = "pairs"
    """IG: all pairs. "plackett_luce": the order as a whole, best first; ties by Efron's rule."""
    ties: Literal["drop", "half", "davidson"] = "drop"
    """Of "pairs". IG: dropped. "half": a tied pair has the target one half, both ways. "davidson": a tie is a third
    answer, whose frequency is learned and saved."""
    margin: float = 0.0
    """Of "pairs". IG: none. What the better score must exceed the other by, for each place between the two."""
    label_smoothing: float = 0.0
    """Of "pairs". IG: none. The chance that a pair was ranked the wrong way round."""
    text_coefficient: float = 0.0
    """IG: none. The weight of the loss of writing the answer of each task that people liked best, in nats a token, by a
    language model on the same transformer: what it knew of language is kept (GRM, arXiv 2406.10216: 0.01)."""
    likelihood_weight: float = 0.0
    """IG: none. Above 0: the head also reads how likely the language model on the same transformer finds the answer, in
    nats a token, and begins by giving that this weight. One that goes on from another that reads it reads it, too."""
    num_heads: int = 1
    """IG: 1. More are an ensemble on one transformer (arXiv 2310.02743 has whole models): each learns from a resampling
    of the rankings; their mean is the score, their spread its doubt."""
    annotators: Literal["equal", "agreement"] = "equal"
    """IG: equal. "agreement": a ranking counts by how well its annotator agrees with others on the same answers."""
    tokens_per_forward: int = 512
    """Memory and speed only: tokens of one forward pass, or of one ranking. More take more memory and save no time on a
    CPU."""
    share_prompt: bool = True
    """Speed only: a prompt is computed once for its K answers. A model that does not allow it is seen by a probe."""
    cache_megabytes: int = 2048
    """Memory only: hidden states of the frozen blocks that are kept between epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "epochs", "warm_epochs", "rankings_per_batch")
        _require_between(self, 0, math.inf, "cache_megabytes", "margin", "text_coefficient", "likelihood_weight")
        _require_between(self, 0, 0.49, "label_smoothing")
        _require_between(self, 0, 1, "replay_share")
        _require_between(self, 1, 64, "num_heads")
        if self.loss == "plackett_luce" and (self.ties != "drop" or self.margin or self.label_smoothing):
            raise ValueError(
                'loss: "plackett_luce" looks at whole orders and takes ties by Efron\'s rule: ties, margin and '
                'label_smoothing are settings of "pairs"'
            )
        for name in ("text_coefficient", "likelihood_weight"):
            if getattr(self, name) and self.sharding == "full":
                raise ValueError(f'{name}: not with sharding: "full", where every process must compute alike')

    def for_rankings(self, num_rankings: int, *, goes_on: bool) -> RewardConfig:
        """The same settings with the number of epochs filled in, for so many rankings to learn from and a model that
        `goes_on` from an earlier one or is fresh."""
        few = min(MOST_EPOCHS, max(1, MANY_RANKINGS // max(1, num_rankings)))
        return dataclasses.replace(self, epochs=(self.warm_epochs if goes_on else None) or self.epochs or few)


@dataclass(frozen=True)
class PPOConfig(_Config):
    """Settings of a `ppo` run."""

    num_episodes: int | None = None
    """IG: 256,000. null: 64 for a large model on a CPU, else 512."""
    episodes_per_batch: int = 32
    """IG: 512 episodes a rollout."""
    minibatch_size: int = 8
    """IG: 64 episodes an optimizer step."""
    samples_per_prompt: int = 1
    """Episodes of a rollout that share a prompt, and the work on it. IG: 1. More is faster, with fewer prompts seen."""
    num_epochs: int | None = None
    """Passes over one rollout. IG: 1; N+: 4. null: 4 for a large model on a CPU, where episodes are dear, else 1."""
    learning_rate: float | None = None
    """IG: 9e-6 for 1.3B. null: 1e-4 for a small model's full weights, 9e-6 for a large one's, 5e-4 for adapters."""
    value_learning_rate: float | None = None
    """IG: 9e-6, tuned apart from the policy's. null: as the policy's."""
    warmup_iterations: int = 10
    """IG: the rate rises from a tenth over 10 iterations, then stays."""
    beta: float = 0.02
    """IG: 0.02, the weight of the KL penalty."""
    target_kl: float | None = None
    """Adaptive beta (arXiv 1909.08593): nats an answer to steer for. null: beta is fixed, as in IG."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive beta moves (arXiv 1909.08593: 10,000)."""
    kl_stop: float | None = None
    """Stop when the KL to the SFT model passes this many nats an answer: it exploits the reward. null: never."""
    gamma: float = 1.0
    """IG: 1, no discount."""
    gae_lambda: float = 0.95
    """IG: 0.95."""
    clip: float = 0.2
    """IG: 0.2, of the probability ratio."""
    value_clip: float = 0.2
    """N+: 0.2, of the move of a value."""
    value_coefficient: float = 0.1
    """N+: 0.1."""
    whiten_advantages: bool = True
    """N+: yes, over the valid tokens of the batch."""
    temperature: float = 1.0
    """IG: 1, in sampling and in every log-probability."""
    missing_eos_penalty: float | None = None
    """Subtracted from the reward of an answer cut by length. null: one standard deviation of the reward's scores."""
    max_new_tokens: int = 64
    """IG: up to 1,024 tokens. An answer that is longer is cut."""
    ptx_coefficient: float = 0.0
    """IG: 27.8, the weight of the loss on pretraining text (PPO-ptx). 0: off, because it needs text. Where `liked` is
    set, the answers that people liked are among the text."""
    ptx_examples_per_episode: int = 8
    """IG: 8 times as many texts as episodes."""
    tax_texts: int = 0
    """The alignment tax: so many of the texts are learned by no step, and measure what writing them costs the policy.
    At most half of them where PPO-ptx learns the others. IG: 0; it took tasks of public data sets, after the run."""
    tax_every: int = 8
    """Rollouts from one measure of `tax_texts` to the next; one is before the first rollout, and one after the last."""
    liked: SFTConfig | None = None
    """IG: none. An SFT on the answers that people liked best, before the first rollout (Llama 2, arXiv 2307.09288, has
    one on those that its reward model likes best). null: PPO begins with the policy as it is. It needs rankings."""
    ema_decay: float | None = None
    """IG: 0.992 a step: the version is an average of the last 125 or so. null: it is what the last step left, because
    the default run has but 64 steps, of which that average would still be to 60 % the weights that it began with."""
    guard_answers: int = 32
    """Answers that a guard scores each time. IG has no guard."""
    guard_every: int = 1
    """Rollouts from one look of the guard to the next. More where its scores are dear. IG has no guard."""
    guard_patience: int = 3
    """Stop after so many looks in a row in which the guard's score was surely below its best (`trainer/ppo_guard.py`)
    and the training score above what it was then. IG has no guard."""
    lora: Lora = "auto"
    """IG: full weights (null). "auto": adapters for a large model on a CPU, else full weights."""
    adam_eps: float = 1e-5
    """N+: 1e-5."""
    max_grad_norm: float = 1.0
    """IG does not say; N+: 1 (of each network)."""
    precision: Precision = "auto"
    """"bfloat16": products of matrices in the transformers only. "auto": that on a GPU, float32 on a CPU."""
    gradient_checkpointing: bool = False
    """Memory only: policy and value model compute their blocks again in the backward pass."""
    sharding: Sharding = "none"
    """Memory only, under torchrun. "full": weights, gradients and moments of all models are spread over the processes
    (FSDP2); while answers are drawn, each has the policy's weights whole."""
    tokens_per_forward: int = 2048
    """Memory only: tokens of one forward pass, or of one prompt with its samples; sampling holds four times as many.
    Results do not depend on it."""
    checkpoint_every: int = 1
    """Rollouts between two checkpoints."""
    seed: int = 17
    """Order of the prompts, sampling, minibatches."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_episodes", "episodes_per_batch", "minibatch_size", "num_epochs", "learning_rate")
        _require_positive(self, "value_learning_rate", "target_kl", "kl_horizon", "kl_stop", "clip", "value_clip")
        _require_positive(self, "temperature", "max_new_tokens", "adam_eps", "max_grad_norm", "checkpoint_every")
        _require_positive(
            self,
            "tokens_per_forward",
            "samples_per_prompt",
            "ptx_examples_per_episode",
            "tax_every",
            "guard_answers",
            "guard_every",
            "guard_patience",
        )
        _require_between(self, 0, 1, "gamma", "gae_lambda")
        _require_between(
            self, 0, math.inf, "beta", "value_coefficient", "missing_eos_penalty", "warmup_iterations", "seed"
        )
        _require_between(self, 0, math.inf, "ptx_coefficient", "tax_texts")
        _require_between(self, 0, 1, "ema_decay")
        if self.episodes_per_batch % self.minibatch_size:
            raise ValueError(
                f"episodes_per_batch: must be a multiple of minibatch_size ({self.minibatch_size}), "
                f"and is {self.episodes_per_batch}"
            )
        for name in ("minibatch_size", "num_episodes"):
            if (getattr(self, name) or 0) % self.samples_per_prompt:
                raise ValueError(
                    f"{name}: must be a multiple of samples_per_prompt ({self.samples_per_prompt}), "
                    f"and is {getattr(self, name)}"
                )

    def for_model(self, num_parameters: int, device: str) -> PPOConfig:
        """The same settings with every automatic field filled in for a model of this size on "cpu" or "cuda"."""
        lora = _choose_lora(self.lora, num_parameters, device)
        rate = self.learning_rate or _choose_rate(lora, num_parameters, adapters=5e-4, small=1e-4, large=9e-6)
        return dataclasses.replace(
            self,
            lora=lora,
            num_epochs=self.num_epochs or (4 if _is_large_for(num_parameters, device) else 1),
            num_episodes=self.num_episodes or self._default_episodes(num_parameters, device),
            learning_rate=rate,
            value_learning_rate=self.value_learning_rate or rate,
            precision=_choose_precision(self.precision, device),
        )

    def _default_episodes(self, num_parameters: int, device: str) -> int:
        """As many whole prompts as there are in 64 or 512 episodes."""
        num = 64 if _is_large_for(num_parameters, device) else 512
        return max(1, num // self.samples_per_prompt) * self.samples_per_prompt


@dataclass(frozen=True)
class SFTConfig(FitConfig):
    """Settings of an `sft` run, and of the SFT within `best_of_n` and `star` runs. IG's rate: 9.65e-6 for 6B."""

    _RATES = {"adapters": 2e-4, "small": 1e-4, "large": 9.65e-6}  # noqa: RUF012 (no field)

    epochs: int = 3
    """IG: 16, although validation loss rose after the first; here the best step is kept, see `patience`."""
    conversations_per_batch: int = 8
    """IG: 32 (8 for 175B)."""
    warmup_ratio: float = 0.03
    """IG: no warm-up. The share of steps over which the rate rises from zero."""
    validation_ratio: float = 0.05
    """IG held out by customer. The share held out, by hash, where no row says its split; none when it is under 8."""
    evaluations_per_epoch: int = 2
    """How often the validation loss is taken. IG does not say."""
    patience: int | None = 2
    """Stop after so many evaluations in a row without a better loss (IG: never, null). The best weights are kept."""
    packing: bool = True
    """Speed only: several conversations share a row. IG does not say."""
    adam_beta2: float = 0.95
    """IG: 0.95."""
    adam_eps: float = 1e-8
    """IG does not say; Adam's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "epochs", "conversations_per_batch", "evaluations_per_epoch", "patience")
        _require_between(self, 0, 1, "validation_ratio")


@dataclass(frozen=True)
class DPOConfig(FitConfig):
    """Settings of a `dpo` run. DPO = arXiv 2305.18290; its rate: 1e-6 with RMSprop."""

    _RATES = {"adapters": 5e-5, "small": 3e-4, "large": 1e-6}  # noqa: RUF012 (no field)

    beta: float = 0.1
    """DPO: 0.1 (0.5 for summaries): how much a nat away from the SFT model costs."""
    ties: Literal["drop", "half", "davidson"] = "drop"
    """DPO has none. "half": the target one half, both ways; "davidson": a tie has a probability of its own."""
    tie_nu: float = 2.0
    """2409.17431: nu_D = 1, which is 2 in our notation: equal answers are tied half of the time. For "davidson"."""
    epochs: int = 1
    """DPO's code: 1."""
    rankings_per_batch: int = 8
    """DPO: 64 pairs; a ranking of four has six."""
    final_learning_rate_ratio: float = 0.1
    """DPO: constant. Here a cosine, as for the reward model; 1 keeps it constant."""
    warmup_ratio: float = 0.1
    """DPO: 150 steps."""
    max_length: int | None = None
    """DPO's code: 512. null: 2,048 tokens of prompt and answer, or the model's context where it is shorter."""
    adam_beta2: float = 0.999
    """DPO: RMSprop, which it found as good as Adam."""
    max_grad_norm: float = 1.0
    """DPO's code: 10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "beta", "tie_nu", "epochs", "rankings_per_batch")


@dataclass(frozen=True)
class _OwnAnswersConfig(_Config):
    """What `best_of_n` and `star` runs share: answers of the policy's own are drawn, some are kept, and learned."""

    temperature: float = 1.0
    """RAFT (2304.06767): 1 (0.85 in one of its experiments). STaR (2203.14465): 0, one answer."""
    max_new_tokens: int = 64
    """RAFT: 128. A longer answer is cut, and never learned."""
    sequences_per_batch: int = 16
    """Memory and speed only: answers that are drawn at once."""
    prompts_per_checkpoint: int = 64
    """Prompts that are answered between two checkpoints."""
    sft: SFTConfig = dataclasses.field(default_factory=lambda: SFTConfig(epochs=1))
    """How the kept answers are learned. RAFT: 1 epoch, rate 2e-5. IG: see SFTConfig."""
    seed: int = 17
    """Sampling."""

    def __post_init__(self) -> None:
        _require_positive(self, "temperature", "max_new_tokens", "sequences_per_batch", "prompts_per_checkpoint")
        _require_between(self, 0, math.inf, "seed")


@dataclass(frozen=True)
class BestOfNConfig(_OwnAnswersConfig):
    """Settings of a `best_of_n` run: of n answers a prompt, the one with the highest reward is learned."""

    n: int = 8
    """RAFT: 8 to 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "n")


@dataclass(frozen=True)
class StarConfig(_OwnAnswersConfig):
    """Settings of a `star` run: of n answers a prompt, those that pass its check are learned."""

    n: int = 4
    """STaR: 1, greedily, and another one with a hint where it fails."""
    answers_per_prompt: int = 1
    """STaR: 1. At most so many different ones are learned of each prompt, so that easy prompts don't rule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "n", "answers_per_prompt")


def _is_large_for(num_parameters: int, device: str) -> bool:
    return device == "cpu" and num_parameters > LARGE_MODEL_PARAMETERS


def _choose_lora(lora: Lora, num_parameters: int, device: str) -> LoraConfig | None:
    if isinstance(lora, LoraConfig) or lora is None:
        return lora
    return LoraConfig() if _is_large_for(num_parameters, device) else None


def _choose_precision(precision: Precision, device: str) -> Precision:
    if precision != "auto":
        return precision
    return "float32" if device == "cpu" else "bfloat16"


def _choose_rate(lora: LoraConfig | None, num_parameters: int, *, adapters: float, small: float, large: float) -> float:
    if lora is not None:
        return adapters
    return large if num_parameters > LARGE_MODEL_PARAMETERS else small


def _require_positive(config: _Config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: must be greater than 0, and is {value}")


def _require_between(config: _Config, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            limits = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            raise ValueError(f"{name}: must be {limits}, and is {value}")


def _parse(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; JSON has no other types than those that the fields use."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for choice in choices:
        if dataclasses.is_dataclass(choice) and isinstance(value, Mapping):
            return typing.cast(type[_Config], choice).from_overrides(value)
        if dataclasses.is_dataclass(choice) and isinstance(value, typing.cast(type, choice)):
            return value
        if typing.get_origin(choice) is Literal and value in typing.get_args(choice):
            return value
        if choice is types.NoneType and value is None:
            return None
        if choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if choice in (int, bool) and type(value) is choice:
            return value
    raise ValueError(f"{name}: {value!r} is not {' or '.join(_describe(choice) for choice in choices)}")


def _describe(choice: Any) -> str:
    if typing.get_origin(choice) is Literal:
        return " or ".join(f'"{option}"' for option in typing.get_args(choice))
    names = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    return names.get(choice, "an object with the keys of LoraConfig")
