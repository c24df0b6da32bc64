"""A language of a few words and random Llamas that speak it: for tests that must end in seconds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.reporting import Level, SilentReporter

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
WORDS = ("a", "b", "c", "d", "User:", "Assistant:")


def make_tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word, words parted by spaces; no chat template."""
    vocabulary = {word: number for number, word in enumerate((PAD, EOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    hidden_size: int = 32,
    num_layers: int = 2,
    context: int = 64,
    spread: float = 0.3,
) -> LlamaForCausalLM:
    """A random Llama in fp32 whose next-token law is far from uniform (`spread` is the deviation of its weights)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=spread,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


def make_positional_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2, which knows places by heart: it can take on any law of short answers.

    The Llama above hardly tells one place from another: the exact gradient of J = E[r] - beta KL led it to 80 % of the
    optimum of an enumerable task (seed 14 of `share_of_the_optimum`, 600 steps), and this one to 99.7 % in 150.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model: GPT2LMHeadModel = GPT2LMHeadModel(config).eval()
    return model


def save_tiny(
    folder: Path, *, seed: int = 0, num_layers: int = 2, spread: float = 0.3, words: tuple[str, ...] = WORDS
) -> Path:
    """A tiny model with its tokenizer, as a folder that `from_pretrained` opens."""
    tokenizer = make_tokenizer(words)
    make_model(tokenizer, seed=seed, num_layers=num_layers, spread=spread).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tied(folder: Path) -> Path:
    """A tiny model whose head is its embeddings."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, spread=0.1)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Recorder(SilentReporter):
    """Remembers what a run reported, and says stop at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.points: dict[str, list[float]] = {}
        self.lines: list[str] = []
        self.stop_at = stop_at
        self.last_step = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.last_step = step
        for name, value in values.items():
            self.points.setdefault(name, []).append(value)

    def log(self, level: Level, text: str) -> None:
        self.lines.append(text)

    def should_stop(self) -> bool:
        return self.last_step == self.stop_at
