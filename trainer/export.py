"""A version as a folder that opens elsewhere, with transformers alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSequenceClassification

from trainer.folders import new_folder
from trainer.reward_model import REWARD_HEAD, RewardModel
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer, save_full


def merge_to_folder(source: ModelSource, out: Path) -> None:
    """A version as a folder that stands alone: weights with the adapter merged in, tokenizer, chat template.

    A policy opens with `AutoModelForCausalLM`, a reward model with `AutoModelForSequenceClassification` (one label);
    that class has no bias: add `reward_bias` of its config to the score. ValueError for a reward model that reads
    likelihoods.
    """
    is_reward = source.version is not None and (source.version / REWARD_HEAD).is_file()
    tokenizer = load_tokenizer(source)
    model: Any = _as_classifier(source, tokenizer.pad_token_id) if is_reward else load_causal_lm(source)
    tokenizer.init_kwargs.pop("local_files_only", None)
    with new_folder(out) as building:
        save_full(model, building)
        tokenizer.save_pretrained(building)


def _as_classifier(source: ModelSource, pad_id: int) -> Any:
    reward = RewardModel.load(source)
    if reward.reads_likelihood:
        raise ValueError(
            "This reward model reads how likely an answer is (likelihood_weight), for which a plain classifier has no "
            "place. `rankloop serve-reward` answers with its scores."
        )
    trunk = cast(Any, reward.trunk).merge_and_unload() if reward.has_adapter else reward.trunk
    config = copy.deepcopy(cast(Any, trunk).config)
    config.num_labels, config.pad_token_id, config.reward_bias = 1, pad_id, reward.head.bias.item()
    model = cast(Any, AutoModelForSequenceClassification).from_config(config)
    model.base_model.load_state_dict(cast(Any, trunk).state_dict())
    with torch.no_grad():
        model.score.weight.copy_(reward.head.weight)
    return model
