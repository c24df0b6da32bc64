"""Where weights come from and go to: base models and versions of them, tokenizers, adapters (LoRA through peft), files.

Knows no loss and nothing of what a model is for. Only safetensors and JSON are read and written. Dropout is off
everywhere.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import peft
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from trainer.checkpoints import save_tensors
from trainer.config import LoraConfig
from trainer.distributed import reading_in_parts, was_read_in_parts

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class ModelSource:
    """Where weights come from: a base model's folder, and the folder of a version of it (docs/protocol.md)."""

    base: Path
    """The folder of the base model, with its tokenizer."""
    version: Path | None = None
    """An adapter on the base, or full weights. None: the base itself."""
    alias: str = ""
    """What saved files call the base; the folder's name when empty. Never a path."""
    in_parts: bool = False
    """Whether each process reads its part only of full weights (FSDP2); all processes read them then."""

    @property
    def name(self) -> str:
        """The alias of the base model."""
        return self.alias or self.base.name

    @property
    def adapter(self) -> Path | None:
        """The version's folder where it is an adapter."""
        return self.version if self.version is not None and (self.version / ADAPTER_CONFIG).is_file() else None

    @property
    def weights(self) -> Path:
        """The folder of full weights that are loaded first: the base, or a version with weights of its own."""
        return self.base if self.version is None or self.adapter else self.version


# --- Tokenizer and facts ---------------------------------------------------------------------------------------------


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token that is not EOS.

    ValueError when the folder has none, when it has no EOS, without which no answer ends, or another model's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The model “{source.name}” has no tokenizer that can be read: {' '.join(str(error).split())}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of “{source.name}” names no EOS token: set eos_token in its config.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _choose_padding(tokenizer)
    _require_known_tokens(tokenizer, source)
    return cast(PreTrainedTokenizerBase, tokenizer)


def _choose_padding(tokenizer: Any) -> str:
    """A special token that ends nothing and begins nothing; masks decide what padding is, so that any token serves."""
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    special = [tokenizer.unk_token_id, *sorted(tokenizer.added_tokens_decoder), *range(len(taken) + 1)]
    return str(tokenizer.convert_ids_to_tokens(next(i for i in special if i is not None and i not in taken)))


def _require_known_tokens(tokenizer: Any, source: ModelSource) -> None:
    """ValueError where the tokenizer says tokens that the model has no embedding for. Of added tokens only those that
    we use count: some models name more than they know (Gemma 3 one of pictures)."""
    if not (source.weights / "config.json").is_file():
        return  # who loads the model says so
    last = max(tokenizer.vocab_size - 1, tokenizer.eos_token_id, tokenizer.pad_token_id)
    config = AutoConfig.from_pretrained(source.weights, local_files_only=True, trust_remote_code=False)
    known = vocabulary_size(config)
    if last >= known:
        raise ValueError(
            f"The tokenizer of “{source.name}” has {last + 1} tokens, and its model knows {known}: it is another "
            "model's. Put the model's own tokenizer into its folder."
        )


def vocabulary_size(config: Any) -> int:
    """How many tokens a model of this transformers config knows."""
    return int(config.get_text_config().vocab_size)


def context_length(config: Any) -> int:
    """How many tokens a model of this transformers config takes: prompt and completion together."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else 2**31


def count_parameters(source: ModelSource) -> int:
    """Parameters of the base model, from its config alone: nothing is loaded."""
    model = _without_weights(AutoModelForCausalLM, replace(source, version=None))
    return sum(parameter.numel() for parameter in model.parameters())


def _without_weights(kind: Any, source: ModelSource) -> PreTrainedModel:
    """A transformers class as the source's config makes it, on torch's "meta" device: shapes, and nothing in them."""
    config = AutoConfig.from_pretrained(source.weights, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return cast(PreTrainedModel, model)


# --- Loading ---------------------------------------------------------------------------------------------------------


def load_causal_lm(source: ModelSource, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A policy version as a plain model for sampling: an adapter is merged into the weights."""
    model = from_pretrained(AutoModelForCausalLM, source, dtype)
    if source.adapter:
        model = load_adapter(model, source.adapter).merge_and_unload()
    return cast(PreTrainedModel, without_dropout(model).to(device))


def load_trunk(source: ModelSource, dtype: torch.dtype) -> Any:
    """The transformer without its language-model head; a policy's adapter is merged into it."""
    if source.adapter:
        return cast(Any, load_causal_lm(source, dtype=dtype)).base_model
    return without_dropout(from_pretrained(AutoModel, source, dtype))


def from_pretrained(kind: Any, source: ModelSource, dtype: torch.dtype) -> Any:
    """A transformers class with the source's full weights. ValueError when its folder holds none that can be read."""
    _refuse_kernels(source)
    try:
        # What an adapter is merged into, or put around, is read whole.
        is_in_parts = source.in_parts and not source.adapter
        parts = {"distributed_config": reading_in_parts(_without_weights(kind, source))} if is_in_parts else {}
        with _quiet_transformers():
            model = kind.from_pretrained(
                source.weights,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                **parts,
            )
            if parts:
                was_read_in_parts(model)
            return model
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"The model “{source.name}” cannot be loaded: its folder needs config.json and model.safetensors ({error})."
        ) from error


def _refuse_kernels(source: ModelSource) -> None:
    """ValueError for a config that names attention code on a hub: transformers fetches and runs it, where `kernels` is
    installed, whatever `trust_remote_code` and `local_files_only` say.
    """
    try:
        config = json.loads((source.weights / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # from_pretrained says what is wrong with it
    named = [config.get("attn_implementation"), config.get("_attn_implementation")] if isinstance(config, dict) else []
    if any("/" in str(name) for name in named):
        raise ValueError(
            f"The model “{source.name}” names attention code on a hub: {named}. Rankloop runs no such code."
        )


def without_dropout(model: Any) -> Any:
    """The model itself, which drops nothing any more, in training mode either."""
    names = ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout", "dropout")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention keeps a number of its own, which counts when blocks are computed again in training mode.
        for name in names:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    for name in names[:3]:
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    return model.eval()


def load_adapter(model: Any, folder: Path) -> Any:
    """The version's adapter around the model; it goes on learning. ValueError when its weights are missing."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"The version has an {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}: deliver it again.")
    with _quiet_peft():
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> Any:
    """Fresh adapters on every linear layer of the last blocks; they change nothing before the first step."""
    num_blocks = model.config.get_text_config().num_hidden_layers
    first = max(0, num_blocks - lora.num_last_blocks)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() and int(part) >= first for part in name.split("."))
    ]
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    with torch.random.fork_rng(), _quiet_peft():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers draws progress bars, and reports that a trunk has no use for a language-model head."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """peft asks transformers for an attribute under its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


# --- Precision -------------------------------------------------------------------------------------------------------


def compute_in_bfloat16(model: PreTrainedModel) -> None:
    """Let a transformer multiply matrices in bfloat16, its language-model head among them, whoever calls it.

    Its weights stay in fp32, and so does all that is around it: scalar heads, log-probabilities, losses.
    """
    parts = [model.base_model, model.get_output_embeddings() if model is not model.base_model else None]
    for part in parts:
        if part is not None:
            autocast = torch.autocast(model.device.type, dtype=torch.bfloat16)
            part.forward = autocast(part.forward)
    cast(Any, model.base_model).products_dtype = torch.bfloat16


def products_dtype(model: PreTrainedModel) -> torch.dtype:
    """What a transformer multiplies matrices in: how exact what it says can be."""
    return cast(torch.dtype, getattr(model.base_model, "products_dtype", model.dtype))


# --- Saving ----------------------------------------------------------------------------------------------------------


def save_weights(model: Any, folder: Path, *, alias: str, is_on_base: bool) -> None:
    """An adapter on the base as an adapter; anything else as full weights, an adapter merged into them."""
    if not isinstance(model, peft.PeftModel):
        save_full(model, folder)
    elif is_on_base:
        _save_adapter(model, folder, alias)
    else:
        save_full(copy.deepcopy(model).merge_and_unload(), folder)


def save_full(model: Any, folder: Path) -> None:
    """All weights, as `from_pretrained` reads them, without any path of this machine."""
    # transformers would write the folder that the model was loaded from into its config.
    setattr(model.config, "_name_or_path", "")  # noqa: B010 (a private name with no public one)
    with _quiet_transformers():
        model.save_pretrained(folder)


def _save_adapter(model: Any, folder: Path, alias: str) -> None:
    """What `peft.PeftModel.from_pretrained` reads, without its model card and without any path of this machine."""
    weights = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / ADAPTER_WEIGHTS
    )
    facts = model.peft_config["default"].to_dict() | {"base_model_name_or_path": alias, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in facts.items()}
    write_json(folder / ADAPTER_CONFIG, plain)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON with sorted keys, the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
