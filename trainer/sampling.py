"""K different completions of a prompt, behind one `Sampler` interface; here by transformers' `generate`.

Every token is picked by inverse transform from uniforms that depend only on (seed, prompt id, index), so that a
completion does not depend on which prompts share its batch, and a resumed run draws the rest of the same texts.
It owns no weights and sends nothing anywhere.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trainer.config import LARGE_MODEL_PARAMETERS
from trainer.models import position_ids
from trainer.reporting import storable
from trainer.weights import context_length

TINY_MODEL_PARAMETERS = 5_000_000
TINY_MODEL_BATCH, SMALL_MODEL_BATCH, LARGE_MODEL_BATCH = 512, 128, 16
"""Sequences that are drawn at once where nobody says how many; "large" as for training."""
TOKENS_PER_STRETCH = 12
"""After so many, answers that have ended leave the batch, and the long ones go on without them."""
MAX_REDRAWS = 3
"""How often a completion that repeats another one of its prompt is drawn again."""

Message = Mapping[str, str]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """How a project samples; checked when made."""

    temperature: float = 1.0
    """Logits are divided by it. InstructGPT: 1."""
    top_p: float = 1.0
    """The smallest set of tokens with this much probability is drawn from. InstructGPT: 1, nothing cut off."""
    max_new_tokens: int = 128
    """Tokens of a completion at most, its EOS among them."""
    seed: int = 17
    """The first seed; duplicates are drawn again with the next ones."""

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature <= 2.0:
            raise ValueError(f"sampling.temperature must be over 0 and at most 2, not {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"sampling.top_p must be over 0 and at most 1, not {self.top_p}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"sampling.max_new_tokens must be at least 1, not {self.max_new_tokens}.")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SamplingSettings:
        """Read the `sampling` object of a run's config; an unknown key is refused by name."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"sampling.{unknown[0]} is not known; known are {', '.join(cls.__dataclass_fields__)}.")
        return cls(**fields)


@dataclass(frozen=True)
class Prompt:
    """What is asked of the model: the messages of a conversation, and the id that its completions come back under."""

    id: str
    messages: Sequence[Message]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Prompt:
        """A row of `GET /runs/{id}/prompts` (docs/protocol.md)."""
        return cls(id=str(row["id"]), messages=row["messages"])


@dataclass(frozen=True)
class Completion:
    """One answer with all that is needed to draw it again."""

    prompt_id: str
    index: int
    text: str
    seed: int
    finish_reason: FinishReason
    num_tokens: int
    sampling: SamplingSettings

    def to_json(self) -> dict[str, Any]:
        """The completion row of docs/protocol.md."""
        return asdict(self)


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt that is finished: its K completions, or why it was refused (then there are none)."""

    prompt_id: str
    completions: list[Completion] = field(default_factory=list)
    num_duplicates: int = 0
    """Completions whose text repeats an earlier one of this prompt, after every try to draw another."""
    refusal: str | None = None


class Sampler(Protocol):
    """Anything that can answer prompts."""

    def sample(self, prompts: Sequence[Prompt], *, k: int, settings: SamplingSettings) -> Iterator[SampledPrompt]:
        """K different completions for every prompt, each prompt as soon as it is finished, in no promised order."""
        ...

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens a second of generating, so far; 0 before the first."""
        ...


@dataclass(frozen=True)
class Draw:
    """One completion to be drawn: the prompt's tokens and the three things that decide its randomness."""

    prompt_tokens: Sequence[int]
    prompt_id: str
    index: int
    seed: int

    def uniforms(self, num: int) -> Tensor:
        """`num` uniforms in [0, 1) in float64, the same wherever and with whomever they are drawn."""
        name = f"{self.seed}\0{self.prompt_id}\0{self.index}".encode()
        state = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
        return torch.rand(num, generator=torch.Generator().manual_seed(state), dtype=torch.float64)


@dataclass(frozen=True)
class Generated:
    """What came of one `Draw`: tokens up to and with the first EOS, and log-probabilities under the drawn law."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins, by the model's own chat template.

    Without a template: each turn as a line "Role: content", then "Assistant:".
    """
    conversation = [{"role": message["role"], "content": message["content"]} for message in messages]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])
    lines = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in conversation]
    return list(tokenizer("\n".join([*lines, "Assistant:"]))["input_ids"])


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a completion without special tokens. NUL, which no database takes, becomes U+FFFD."""
    return storable(str(tokenizer.decode(list(tokens), skip_special_tokens=True)))


def context_refusal(model: PreTrainedModel, prompt_id: str, num_prompt_tokens: int, max_new_tokens: int) -> str | None:
    """Why this prompt cannot be answered, in words for the run's page; None when it fits the model's context."""
    limit = context_length(model.config)
    if num_prompt_tokens + max_new_tokens <= limit:
        return None
    return (
        f"Prompt {prompt_id} has {num_prompt_tokens} tokens; with up to {max_new_tokens} new ones that is over the "
        f"model's context of {limit}. Shorten the prompt, or lower max_new_tokens."
    )


def left_pad(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(tokens_BL, mask_BL): rows that all end at the right edge; the mask is true on real tokens."""
    width = max(len(row) for row in rows)
    tokens_BL = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BL = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens_BL[number, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask_BL[number, width - len(row) :] = True
    return tokens_BL, mask_BL


# B = rows, V = vocabulary, T = new tokens
def drawn_law(logits_BV: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """log p_BV in fp32 of the law that tokens are drawn from: temperature, then the nucleus (1904.09751)."""
    logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    if top_p >= 1.0:
        return logprobs_BV
    sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.exp().cumsum(dim=-1) - sorted_BV.exp()
    kept_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)
    return torch.log_softmax(logprobs_BV.masked_fill(~kept_BV, float("-inf")), dim=-1)


def pick_tokens(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token_B at which the cumulative probability passes the uniform (inverse transform, in float64)."""
    cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
    target_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    token_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    return token_B.clamp(max=logprobs_BV.shape[-1] - 1)


class _InverseTransform(LogitsProcessor):
    """Turns `generate`'s greedy search into sampling from given uniforms: all tokens but the picked one get -inf."""

    def __init__(self, uniforms_BT: Tensor, *, temperature: float, top_p: float) -> None:
        self.uniforms_BT, self.temperature, self.top_p = uniforms_BT, temperature, top_p
        self.picked_logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs_BV = drawn_law(scores, temperature=self.temperature, top_p=self.top_p)
        token_B1 = pick_tokens(logprobs_BV, self.uniforms_BT[:, len(self.picked_logprobs)])[:, None]
        self.picked_logprobs.append(logprobs_BV.gather(1, token_B1)[:, 0])
        return torch.full_like(scores, float("-inf")).scatter(1, token_B1, 0.0)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    draws: Sequence[Draw],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    num_shared: int = 1,
    tokens_per_stretch: int | None = None,
) -> list[Generated]:
    """One batch of completions, in the order of `draws`; the model's own sampling defaults play no part.

    `num_shared`: of each so many draws in a row the prompt is one and the same, and is computed once.
    `tokens_per_stretch`: after so many tokens, and so on, the answers that have ended leave the batch, and the others
    go on from their keys and values; left out, all stay until the last one ends. ValueError when the model says NaN.
    """
    batch = _Batch(model, draws, num_new=max_new_tokens, pad_id=pad_id, num_shared=num_shared)
    with _only_our_law(model, max_new_tokens=max_new_tokens, eos_ids=eos_ids, pad_id=pad_id):
        for start in range(0, max_new_tokens, tokens_per_stretch or max_new_tokens):
            end = min(max_new_tokens, start + (tokens_per_stretch or max_new_tokens))
            batch.draw(start, end, temperature=temperature, top_p=top_p)
            if end == max_new_tokens or not batch.drop_ended(start, end, eos_ids):
                break
    rows = zip(batch.new_BT, batch.logprobs_BT, strict=True)
    return [_cut(tokens_T, logprobs_T, eos_ids) for tokens_T, logprobs_T in rows]


# B = all answers of the batch, R = those that go on, T = new tokens
class _Batch:
    """Completions in the making."""

    def __init__(
        self, model: PreTrainedModel, draws: Sequence[Draw], *, num_new: int, pad_id: int, num_shared: int
    ) -> None:
        self._model = model
        padded = left_pad([draw.prompt_tokens for draw in draws], pad_id=pad_id)
        self._tokens_RL, self._mask_RL = (tensor.to(model.device) for tensor in padded)
        self._uniforms_BT = torch.stack([draw.uniforms(num_new) for draw in draws]).to(model.device)
        self._past = _prefilled(model, self._tokens_RL, self._mask_RL, num_shared)
        self._row_R = torch.arange(len(draws))
        self.new_BT = torch.full((len(draws), num_new), pad_id)
        self.logprobs_BT = torch.zeros(len(draws), num_new)

    def draw(self, start: int, end: int, *, temperature: float, top_p: float) -> None:
        """The new tokens `start` to `end` of all that go on; fewer where all end before."""
        law = _InverseTransform(self._uniforms_BT[self._row_R, start:], temperature=temperature, top_p=top_p)
        output = cast(Any, self._model).generate(
            self._tokens_RL,
            attention_mask=self._mask_RL.long(),
            logits_processor=LogitsProcessorList([law]),
            max_new_tokens=end - start,
            return_dict_in_generate=True,
            # Each process draws for itself, where a model is spread, too: see `distributed.whole`.
            synced_gpus=False,
            **self._past,
        )
        columns = slice(start, start + len(law.picked_logprobs))
        self.new_BT[self._row_R, columns] = output.sequences[:, self._tokens_RL.shape[1] :].cpu()
        self.logprobs_BT[self._row_R, columns] = torch.stack(law.picked_logprobs, dim=1).cpu()
        self._tokens_RL = output.sequences
        # None where a model keeps another state; its answers stay together.
        self._past = {"past_key_values": output.past_key_values}

    def drop_ended(self, start: int, end: int, eos_ids: Sequence[int]) -> bool:
        """Keep the answers that did not end from `start` to `end`, with their keys and values; whether there are."""
        goes_on_R = ~torch.isin(self.new_BT[self._row_R, start:end], torch.tensor(eos_ids)).any(dim=1)
        kept = goes_on_R.nonzero()[:, 0].to(self._model.device)
        if not len(kept):
            return False
        self._row_R, self._tokens_RL = self._row_R[goes_on_R], self._tokens_RL[kept]
        num_new = self._tokens_RL.shape[1] - self._mask_RL.shape[1]
        self._mask_RL = torch.cat([self._mask_RL[kept], self._mask_RL.new_ones(len(kept), num_new)], dim=1)
        self._past["past_key_values"].batch_select_indices(kept)
        return True


def _prefilled(model: PreTrainedModel, tokens_BL: Tensor, mask_BL: Tensor, num_shared: int) -> dict[str, DynamicCache]:
    """The keys and values of all prompt tokens but the last, for `generate` to go on from."""
    if num_shared == 1 or tokens_BL.shape[1] < 2:
        return {}
    past = DynamicCache(config=model.config)
    rows = slice(None, None, num_shared), slice(0, -1)
    cast(Any, model)(
        input_ids=tokens_BL[rows],
        attention_mask=mask_BL[rows].long(),
        position_ids=position_ids(mask_BL)[rows],
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    past.batch_repeat_interleave(num_shared)
    return {"past_key_values": past}


@torch.no_grad()
def can_share_cache(model: PreTrainedModel) -> bool:
    """Whether a prompt's keys and values may be computed once for its answers: some architectures keep another state,
    which the probe sees. It asks the same of ragged prompts in both ways."""
    size = min(16, int(model.config.get_text_config().vocab_size))
    prompts = [[(7 * number + 3) % size for number in range(length)] for length in (3, 3, 5, 5)]
    tokens_BL, mask_BL = (tensor.to(model.device) for tensor in left_pad(prompts, pad_id=0))
    rows = {"attention_mask": mask_BL.long(), "position_ids": position_ids(mask_BL)}
    last = rows | {"position_ids": rows["position_ids"][:, -1:]}
    try:
        with _caching(model):
            past = _prefilled(model, tokens_BL, mask_BL, num_shared=2)
            shared = model(tokens_BL[:, -1:], **last, **past).logits[:, -1]
            alone = model(tokens_BL, **rows, use_cache=False).logits[:, -1]
    except Exception:  # noqa: BLE001 (whatever an architecture makes of such a cache: without one it always works)
        return False
    tolerance = 1e-4 if alone.dtype == torch.float32 else 3e-2
    return bool((shared - alone).abs().max() <= tolerance * alone.abs().max())


@contextmanager
def _only_our_law(
    model: PreTrainedModel, *, max_new_tokens: int, eos_ids: Sequence[int], pad_id: int
) -> Iterator[None]:
    """`generate` fills what a call leaves open from the model's own defaults (a repetition penalty, top-k). They
    are taken away for the time being, so that tokens come from the law that training computes."""
    module = cast(Any, model)
    own = module.generation_config
    module.generation_config = cast(Any, GenerationConfig)(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(eos_ids), pad_token_id=pad_id
    )
    try:
        with _caching(model):
            yield
    finally:
        module.generation_config = own


@contextmanager
def _caching(model: PreTrainedModel) -> Iterator[None]:
    """A model that computes its blocks again is in training mode, in which it keeps no keys and values."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _cut(tokens_T: Tensor, logprobs_T: Tensor, eos_ids: Sequence[int]) -> Generated:
    """Keep all up to and with the first EOS. ValueError where the law that a token was drawn from is none."""
    ends_T = torch.isin(tokens_T, torch.tensor(eos_ids)).nonzero()[:, 0]
    num = int(ends_T[0]) + 1 if len(ends_T) else len(tokens_T)
    if not bool(logprobs_T[:num].isfinite().all()):
        raise ValueError(
            "The model can't be sampled: a probability of the next token is NaN or infinite. Its weights are damaged, "
            "or a step of its training was too large."
        )
    return Generated(tokens_T[:num].tolist(), logprobs_T[:num].tolist(), "stop" if len(ends_T) else "length")


class _Encoded(NamedTuple):
    prompt_id: str
    tokens: list[int]


class LocalSampler:
    """Samples in this process. `sequences_per_batch` bounds memory and the wait; the texts do not depend on it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, sequences_per_batch: int | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.sequences_per_batch = sequences_per_batch or _batch_for(model)
        self.num_tokens, self.seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens a second of generating, so far; 0 before the first."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @cached_property
    def _can_share(self) -> bool:
        return can_share_cache(self.model)

    def sample(self, prompts: Sequence[Prompt], *, k: int, settings: SamplingSettings) -> Iterator[SampledPrompt]:
        """K different completions a prompt, shortest prompts first; the first batch is one prompt, so that it is
        there soon. A prompt that does not fit the model's context is refused by name, and the others go on.

        A completion is drawn with `settings.seed`, or with one of the next `MAX_REDRAWS` seeds where it repeated
        another one's text; what still repeats then is kept and counted.
        """
        fitting: list[_Encoded] = []
        for prompt in prompts:
            tokens = encode_prompt(self.tokenizer, prompt.messages)
            refusal = context_refusal(self.model, prompt.id, len(tokens), settings.max_new_tokens)
            if refusal is None:
                fitting.append(_Encoded(prompt.id, tokens))
            else:
                yield SampledPrompt(prompt.id, refusal=refusal)
        fitting.sort(key=lambda item: len(item.tokens))
        for batch in _in_batches(fitting, size=max(1, self.sequences_per_batch // k)):
            yield from self._sample_batch(batch, k, settings)

    def draw(
        self, draws: Sequence[Draw], *, temperature: float, top_p: float, max_new_tokens: int, num_shared: int = 1
    ) -> list[Generated]:
        """Generate these draws, in their order, `sequences_per_batch` at a time; the speed is measured.

        Each `num_shared` in a row have the same prompt, which is computed once where the model allows it.
        """
        started = time.perf_counter()
        results: list[Generated] = []
        num_shared = self._share_of(num_shared)
        size = max(1, self.sequences_per_batch // num_shared) * num_shared
        for start in range(0, len(draws), size):
            results += generate(
                self.model,
                draws[start : start + size],
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                eos_ids=[self.tokenizer.eos_token_id],
                pad_id=self.tokenizer.pad_token_id,
                num_shared=num_shared,
                tokens_per_stretch=TOKENS_PER_STRETCH if self._can_share else None,
            )
        self.seconds += time.perf_counter() - started
        self.num_tokens += sum(len(result.tokens) for result in results)
        return results

    def _share_of(self, num: int) -> int:
        """So many of `num` answers to a prompt go through the model together: all, or a part that fits a batch."""
        if num == 1 or not self._can_share:
            return 1
        return next(size for size in range(min(num, self.sequences_per_batch), 0, -1) if num % size == 0)

    def _sample_batch(self, batch: Sequence[_Encoded], k: int, settings: SamplingSettings) -> Iterator[SampledPrompt]:
        wanted = [Draw(item.tokens, item.prompt_id, index, settings.seed) for item in batch for index in range(k)]
        drawn: dict[tuple[str, int], tuple[Draw, Completion]] = {}
        for attempt in range(1 + MAX_REDRAWS):
            results = self.draw(
                wanted,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_new_tokens=settings.max_new_tokens,
                # All of a prompt's answers stand together at first; those that are drawn again are few.
                num_shared=1 if attempt else k,
            )
            for draw, result in zip(wanted, results, strict=True):
                drawn[draw.prompt_id, draw.index] = draw, self._completion(draw, result, settings)
            wanted = [replace(draw, seed=draw.seed + 1) for draw in _repeats(drawn.values())]
            if not wanted:
                break
        num_duplicates = Counter(draw.prompt_id for draw in wanted)
        for item in batch:
            completions = [drawn[item.prompt_id, index][1] for index in range(k)]
            yield SampledPrompt(item.prompt_id, completions, num_duplicates[item.prompt_id])

    def _completion(self, draw: Draw, result: Generated, settings: SamplingSettings) -> Completion:
        return Completion(
            prompt_id=draw.prompt_id,
            index=draw.index,
            text=decode(self.tokenizer, result.tokens),
            seed=draw.seed,
            finish_reason=result.finish_reason,
            num_tokens=len(result.tokens),
            sampling=settings,
        )


def _batch_for(model: PreTrainedModel) -> int:
    """A step of a small model takes hardly longer for more sequences, and who has ended leaves the batch."""
    num_parameters = model.num_parameters()
    if num_parameters <= TINY_MODEL_PARAMETERS:
        return TINY_MODEL_BATCH
    return SMALL_MODEL_BATCH if num_parameters <= LARGE_MODEL_PARAMETERS else LARGE_MODEL_BATCH


def _in_batches(items: Sequence[_Encoded], size: int) -> Iterator[Sequence[_Encoded]]:
    """The first alone, so that it is there soon; then `size` at a time."""
    if items:
        yield items[:1]
    yield from (items[start : start + size] for start in range(1, len(items), size))


def _repeats(drawn: Iterable[tuple[Draw, Completion]]) -> list[Draw]:
    """The draws whose text an earlier one of their prompt has; white space makes no difference to a reader."""
    seen: set[tuple[str, str]] = set()
    repeats: list[Draw] = []
    for draw, completion in drawn:
        key = draw.prompt_id, " ".join(completion.text.split())
        if key in seen:
            repeats.append(draw)
        seen.add(key)
    return repeats
