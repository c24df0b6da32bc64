"""Trains the pocket model: a Llama of about 0.6M parameters on the pocket world's text, in three to fifteen minutes.

That text is of mixed quality on purpose (`world.QUALITY_SHARES`): an honest SFT policy with room to improve.
"""

import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, fields
from io import StringIO
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.folders import Progress, new_folder, read_manifest, write_manifest
from trainer.pocket.utility import Judgement, judge
from trainer.pocket.world import (
    Example,
    Request,
    good_answer,
    held_out_requests,
    training_examples,
    validation_examples,
)

NAME = "pocket"
DEFAULT_SEED = 17
DEFAULT_STEPS = 1300

PAD, BOS, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = [PAD, BOS, END, USER, ASSISTANT, SYSTEM]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCABULARY_SIZE = 2048
NUM_TOKENIZER_EXAMPLES = 12_000
CONTEXT_TOKENS = 512

BATCH_EXAMPLES = 32
# Examples of like length share a batch: so many batches are drawn at once and sorted.
BATCHES_PER_BUCKET = 32
TOKENS_OF_AN_ANSWER = 36
"""On average. The loss is a sum over a batch's tokens by the tokens of an average batch, so that each token of the text
counts alike. With each batch's own mean, those of short answers counted more, as short answers share batches: the model
was rude and curt half as often again as its text."""
# Muon for matrices, AdamW for the rest. AdamW alone was behind all the way: 1.16 to 0.98 nats a token after 250 batches
# of 16, 0.234 to 0.230 after 1,500.
MATRIX_LEARNING_RATE = 0.03
LEARNING_RATE = 8e-3
WARMUP_STEPS = 50
NUM_VALIDATION_EXAMPLES = 256
NUM_SAMPLED_ANSWERS = 256
MAX_NEW_TOKENS = 200
IGNORED_LABEL = -100


@dataclass(frozen=True)
class PocketReport:
    """What was built, and how good it is before any ranking."""

    folder: str
    seed: int
    steps: int
    num_parameters: int
    num_training_tokens: int
    """Tokens of the training text that were seen, prompts included."""
    validation_loss: float
    """Nats a token of the answers to held-out prompts, of mixed quality as in training."""
    sampled_utility: float
    """Mean true utility of its own answers to held-out prompts at temperature 1."""
    good_utility: float
    """Mean true utility of the world's good answers to the same prompts: what is there to gain."""
    shares: dict[str, float]
    """Its answers by class: see `classify`."""
    seconds: float


def build_pocket(
    out: Path,
    *,
    seed: int = DEFAULT_SEED,
    steps: int = DEFAULT_STEPS,
    progress: Progress,
    num_sampled_answers: int = NUM_SAMPLED_ANSWERS,
) -> PocketReport:
    """Train the pocket model into the folder `out`, which `from_pretrained` opens; a folder that is up to date is kept.

    Up to date: its manifest names the same code and settings. The folder appears in one rename.
    """
    fingerprint = _fingerprint(seed, steps)
    manifest = read_manifest(out)
    if manifest is not None and manifest.get("fingerprint") == fingerprint:
        progress(f"The pocket model is already in {out}", 1.0)
        return _report_from(manifest)
    with new_folder(out) as building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        started = time.monotonic()
        progress("Training the tokenizer", 0.0)
        tokenizer = train_tokenizer(seed)
        model = LlamaForCausalLM(_model_config(tokenizer))
        num_tokens = _train(model, tokenizer, seed, steps, progress)
        progress("Measuring what it writes", 0.95)
        measured = _measure(model, tokenizer, seed, num_sampled_answers)
        report = PocketReport(
            folder=str(out),
            seed=seed,
            steps=steps,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_training_tokens=num_tokens,
            seconds=round(time.monotonic() - started, 1),
            **measured,
        )
        _save(model, tokenizer, building)
        about = {"model": NAME, "made_by": "rankloop model fetch pocket", "fingerprint": fingerprint}
        write_manifest(building, {**about, "report": asdict(report)})
    progress(f"The pocket model is in {out}", 1.0)
    return report


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 tokens on the world's text: any text can be encoded, and comes back unchanged.

    A number of one digit is one token, the same one after a space and without. In pieces, some of them with a space
    (" 17", but "2", "9"), so small a model learned neither to copy a number nor to add two.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    examples = islice(training_examples(seed), NUM_TOKENIZER_EXAMPLES)
    bpe.train_from_iterator(
        (text for example in examples for text in (example.request.prompt, example.answer)), learner
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        padding_side="left",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def classify(judgement: Judgement) -> str:
    """The class of an answer by what is worst about it: rude, looping, off_topic, short, flawed, or good."""
    if judgement.rudeness > 0:
        return "rude"
    if judgement.repetition > 0.3:
        return "looping"
    if judgement.topic < 0.3 and judgement.content < 0.5:
        return "off_topic"
    if judgement.length > 0.3:
        return "short"
    return "good" if judgement.total >= 3.0 else "flawed"


def _fingerprint(seed: int, steps: int) -> str:
    """A hash of everything that the report depends on: the package's code, the seed and the steps."""
    digest = hashlib.sha256(json.dumps([seed, steps]).encode())
    for name in ("words.py", "world.py", "utility.py", "build.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _report_from(manifest: dict[str, Any]) -> PocketReport:
    return PocketReport(**{field.name: manifest["report"][field.name] for field in fields(PocketReport)})


def _model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        # About 1/sqrt(hidden size): from the usual 0.02 so narrow a model hardly learns to copy from its prompt.
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, progress: Progress
) -> int:
    """Warm-up and a cosine to zero, on the answers alone; returns how many tokens were seen."""
    optimizers = _make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_share(step, steps))
        for optimizer in optimizers
    ]
    batches = _batches(training_examples(seed), tokenizer, random.Random(seed))
    num_tokens, smooth_loss = 0, math.log(VOCABULARY_SIZE)
    model.train()
    for step, (ids_BT, labels_BT) in enumerate(islice(batches, steps), start=1):
        loss = _answer_loss(model, ids_BT, labels_BT, tokenizer.pad_token_id)
        model.zero_grad()
        (loss * _share_of_average(labels_BT)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        num_tokens += int(ids_BT.ne(tokenizer.pad_token_id).sum())
        smooth_loss += 0.05 * (loss.item() - smooth_loss)
        if step % 10 == 0:
            progress(f"Step {step} of {steps}, loss {smooth_loss:.2f}", 0.02 + 0.93 * step / steps)
    return num_tokens


def _make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon moves the matrices between hidden states; embeddings (the head's, too) and scales are AdamW's."""
    inner = {name for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name}
    matrices = [weight for name, weight in model.named_parameters() if name in inner]
    others = [weight for name, weight in model.named_parameters() if name not in inner]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def _share_of_average(labels_BT: Tensor) -> float:
    """How many tokens a batch has to teach, in those of an average batch."""
    return int(labels_BT[:, 1:].ne(IGNORED_LABEL).sum()) / (BATCH_EXAMPLES * TOKENS_OF_AN_ANSWER)


def _learning_rate_share(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


def _answer_loss(model: LlamaForCausalLM, ids_BT: Tensor, labels_BT: Tensor, pad_id: int) -> Tensor:
    """Mean cross-entropy over the labelled tokens, in nats; the logits of the other tokens are never computed."""
    mask_BT = ids_BT.ne(pad_id)
    hidden_BTD = model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    is_target_BT = labels_BT[:, 1:].ne(IGNORED_LABEL)
    logits_NV = model.lm_head(hidden_BTD[:, :-1][is_target_BT])
    return torch.nn.functional.cross_entropy(logits_NV, labels_BT[:, 1:][is_target_BT])


def _batches(
    examples: Iterator[Example], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (ids_BT, labels_BT) of examples of like length, right-padded, in random order."""
    while bucket := list(islice(examples, BATCH_EXAMPLES * BATCHES_PER_BUCKET)):
        encoded = sorted((_encode(example, tokenizer) for example in bucket), key=lambda pair: len(pair[0]))
        batches = [encoded[start : start + BATCH_EXAMPLES] for start in range(0, len(encoded), BATCH_EXAMPLES)]
        rng.shuffle(batches)
        for batch in batches:
            yield _collate(batch, tokenizer.pad_token_id)


def _encode(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids, and labels that leave the prompt out."""
    prompt = f"{BOS}{USER}{example.request.prompt}{END}{ASSISTANT}"
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(example.answer + END, add_special_tokens=False)
    return prompt_ids + answer_ids, [IGNORED_LABEL] * len(prompt_ids) + answer_ids


def _collate(batch: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in batch)
    ids_BT = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in batch])
    labels_BT = torch.tensor([labels + [IGNORED_LABEL] * (longest - len(labels)) for _, labels in batch])
    return ids_BT, labels_BT


@torch.no_grad()
def _measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, num_answers: int
) -> dict[str, Any]:
    """The figures of the report that say how good the model is."""
    model.eval()
    requests = held_out_requests(num_answers, seed)
    answers = sample_answers(model, tokenizer, requests)
    judgements = [judge(request.prompt, answer) for request, answer in zip(requests, answers, strict=True)]
    rng = random.Random(seed)
    good = [judge(request.prompt, good_answer(request, rng)).total for request in requests]
    classes = Counter(classify(judgement) for judgement in judgements)
    return {
        "validation_loss": round(_validation_loss(model, tokenizer, seed), 4),
        "sampled_utility": round(fmean(judgement.total for judgement in judgements), 4),
        "good_utility": round(fmean(good), 4),
        "shares": {name: round(count / len(answers), 4) for name, count in classes.most_common()},
    }


def _validation_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    examples = islice(validation_examples(seed), NUM_VALIDATION_EXAMPLES)
    losses, weights = [], []
    for ids_BT, labels_BT in _batches(examples, tokenizer, random.Random(seed)):
        losses.append(_answer_loss(model, ids_BT, labels_BT, tokenizer.pad_token_id).item())
        weights.append(int(labels_BT.ne(IGNORED_LABEL).sum()))
    return fmean(losses, weights)


def sample_answers(model: Any, tokenizer: PreTrainedTokenizerFast, requests: Sequence[Request]) -> list[str]:
    """One answer a request, at temperature 1, with torch's global random state."""
    chats = [[{"role": "user", "content": request.prompt}] for request in requests]
    answers: list[str] = []
    for start in range(0, len(chats), 64):
        inputs: Any = tokenizer.apply_chat_template(
            chats[start : start + 64], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        ids_BT = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
        answers += tokenizer.batch_decode(ids_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, building: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    # transformers draws progress bars of its own, which would break ours.
    with redirect_stderr(StringIO()):
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
