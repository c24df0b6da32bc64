"""SFT: only the assistant's tokens are learned, nothing depends on how rows are cut, and a killed run goes on."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from tests.trainer.tiny import Recorder, make_model, make_tokenizer, save_tiny
from trainer.config import LoraConfig, SFTConfig
from trainer.demonstrations import Conversation, read_conversations, to_conversations
from trainer.fitting import learning_rate_at
from trainer.folders import sha256_file
from trainer.packing import Document, can_pack, learned_logprobs, pack
from trainer.reporting import RunCancelled, SilentReporter
from trainer.sft import SFTResult, encode_conversation, train_sft
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
CONFIG = SFTConfig(
    lora=None,
    epochs=1,
    learning_rate=3e-3,
    conversations_per_batch=4,
    checkpoint_every=2,
    warmup_ratio=0.0,
    validation_ratio=0.0,
)
PAD, EOS = 0, 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(save_tiny(tmp_path_factory.mktemp("models") / "tiny", spread=0.1))


def make_rows(num: int, *, seed: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """The assistant says the asked words backwards, which a tiny model can begin to learn."""
    chance = random.Random(seed)
    rows = []
    for number in range(num):
        words = chance.choices("abcd", k=chance.randint(1, 5))
        rows.append({"id": f"c{number}", "prompt": " ".join(words), "completion": " ".join(reversed(words))} | changes)
    return rows


def train(rows: list[Any], source: ModelSource, out: Path, **changes: Any) -> SFTResult:
    options: dict[str, Any] = {"config": CONFIG, "report": SilentReporter()} | changes
    return train_sft(rows, source=source, out=out, **options)


# --- What is learned ---


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Turns between <user> or <assistant> and <eos>, as ChatML has them."""
    tokenizer = make_tokenizer(("a", "b", "c", "d", "<user>", "<assistant>"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <eos> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    return tokenizer


def shown(tokenizer: PreTrainedTokenizerFast, document: Document) -> list[str]:
    """Its tokens, the learned ones in capitals."""
    words = tokenizer.convert_ids_to_tokens(document.tokens)
    return [w.upper() if is_learned else w for w, is_learned in zip(words, document.is_learned, strict=True)]


def two_turns(last: str | None = None) -> Conversation:
    (found,) = to_conversations(
        [
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d d"},
                ],
                "finish_reason": last,
            }
        ]
    )
    return found


def test_every_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else() -> None:
    tokenizer = chat_tokenizer()
    (document,) = encode_conversation(two_turns(), tokenizer)
    assert shown(tokenizer, document) == (
        ["<user>", "a", "<eos>", "<assistant>", "B", "<EOS>", "<user>", "c", "<eos>", "<assistant>", "D", "D", "<EOS>"]
    )


def test_a_turn_that_was_cut_ends_without_eos() -> None:
    (document,) = encode_conversation(two_turns("length"), chat_tokenizer())
    assert document.tokens[-1] != EOS
    assert document.is_learned[4:6] == [True, True]  # the turn before is whole: "b" and its EOS


def test_turns_that_the_template_shows_otherwise_are_documents_of_their_own() -> None:
    tokenizer = make_tokenizer()  # without a template, no EOS stands between turns
    first, second = encode_conversation(two_turns(), tokenizer)
    assert shown(tokenizer, first)[-3:] == ["Assistant:", "B", "<EOS>"]
    assert shown(tokenizer, second)[-4:] == ["Assistant:", "D", "D", "<EOS>"]
    assert sum(second.is_learned) == 3


def test_the_first_loss_is_the_mean_over_the_learned_tokens(source: ModelSource, tmp_path: Path) -> None:
    rows = make_rows(4)
    report = Recorder()
    train(rows, source, tmp_path / "sft", report=report)
    model, tokenizer = load_causal_lm(source).double(), load_tokenizer(source)
    losses = []
    for conversation in to_conversations(rows):
        prompt = tokenizer.encode(f"User: {conversation.messages[0]['content']}\nAssistant:")
        answer = [*tokenizer.encode(conversation.messages[1]["content"]), EOS]
        logits = model(torch.tensor([prompt + answer])).logits[0]
        for place, token in enumerate(answer, start=len(prompt)):
            losses.append(-logits[place - 1].log_softmax(0)[token].item())
    assert report.points["loss/sft"][0] == pytest.approx(sum(losses) / len(losses), abs=1e-6)


# --- How rows are cut ---


def documents_of(*lengths: int) -> list[Document]:
    chance = random.Random(3)
    return [Document(chance.choices(range(2, 9), k=n), [False, *[True] * (n - 1)]) for n in lengths]


@pytest.mark.parametrize("tokens_per_forward", [1, 20, 1000])
def test_packing_changes_no_log_probability(tokens_per_forward: int) -> None:
    model = make_model(make_tokenizer())
    documents = documents_of(9, 2, 5, 5, 3, 7, 1)
    found: dict[bool, dict[int, list[float]]] = {True: {}, False: {}}
    num_cells = {True: 0, False: 0}
    for is_packing in (True, False):
        parts = pack(documents, tokens_per_forward=tokens_per_forward, pad_id=PAD, is_packing=is_packing)
        for part in parts:
            num_cells[is_packing] += part.tokens_RL.numel()
            logprobs, owners = learned_logprobs(model, part)
            for owner, logprob in zip(owners.tolist(), logprobs.tolist(), strict=True):
                found[is_packing].setdefault(owner, []).append(logprob)
    assert found[True].keys() == found[False].keys() == set(range(6))  # the last has nothing to learn
    for owner in range(6):
        assert found[True][owner] == pytest.approx(found[False][owner], abs=1e-5)
    # 32 tokens in rows of 9, 7 + 2, 5 + 3 + 1 and 5: the last is as short as it is where it is alone.
    assert num_cells[True] == (32 if tokens_per_forward == 1 else 36)
    if tokens_per_forward == 1000:
        assert num_cells[False] == 7 * 9


def test_no_token_sees_another_document() -> None:
    model = make_model(make_tokenizer())
    one, other = documents_of(4, 10)
    changed = Document([8, *one.tokens[1:3], 8], one.is_learned)
    seen = []
    for first in (one, changed):
        (part,) = pack([first, other, one], tokens_per_forward=1000, pad_id=PAD)
        assert part.tokens_RL.shape == (2, 10)  # the short ones share a row
        logprobs, owners = learned_logprobs(model, part)
        seen.append(logprobs[owners != 0])
    assert torch.allclose(seen[0], seen[1], atol=1e-6)


def test_a_model_that_sees_across_documents_is_found_out(source: ModelSource, tmp_path: Path, monkeypatch: Any) -> None:
    model = make_model(make_tokenizer())
    assert can_pack(model)
    forward = model.forward

    def blind(position_ids: Any, **arguments: Any) -> Any:
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", blind)
    assert not can_pack(model)
    monkeypatch.setattr("trainer.sft.can_pack", lambda _: False)
    report = Recorder()
    train(make_rows(4), source, tmp_path / "sft", report=report)
    assert any("a row of its own" in line for line in report.lines)


@pytest.mark.parametrize("lora", [LORA, None])
def test_how_the_work_is_cut_does_not_matter(source: ModelSource, lora: LoraConfig | None, tmp_path: Path) -> None:
    changes = [
        {},
        {"packing": False},
        {"tokens_per_forward": 1},
        {"packing": False, "tokens_per_forward": 40},
        {"gradient_checkpointing": True},
    ]
    losses = []
    for number, change in enumerate(changes):
        report = Recorder()
        config = dataclasses.replace(CONFIG, lora=lora, epochs=2, **change)
        train(make_rows(10), source, tmp_path / f"sft{number}", config=config, report=report)
        losses.append(report.points["loss/sft"])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-5)


def test_bfloat16_is_near(source: ModelSource, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        report = Recorder()
        config = dataclasses.replace(CONFIG, precision=precision)
        result = train(make_rows(10), source, tmp_path / precision, config=config, report=report)
        losses.append(report.points["loss/sft"])
        assert load_file(result.folder / "model.safetensors")["lm_head.weight"].dtype == torch.float32
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=2e-2)


# --- The run ---


def test_it_learns(source: ModelSource, tmp_path: Path) -> None:
    rows = [{"prompt": word, "completion": f"{word} b"} for word in "abcd"] * 8
    config = dataclasses.replace(CONFIG, epochs=12, learning_rate=1e-2, validation_ratio=0.0)
    result = train(rows, source, tmp_path / "sft", config=config)
    assert result.loss < 0.05
    assert result.validation_loss is None
    assert result.best_step == result.num_steps == 96
    tokenizer = load_tokenizer(source)
    model: Any = load_causal_lm(ModelSource(source.base, result.folder))
    asked = torch.tensor([tokenizer.encode("User: c\nAssistant:")])
    said = model.generate(asked, max_new_tokens=3, do_sample=False)[0, asked.shape[1] :]
    assert tokenizer.decode(said) == "c b <eos>"


def test_it_stops_when_validation_gets_worse_and_keeps_the_best_weights(source: ModelSource, tmp_path: Path) -> None:
    # What is held out partly contradicts what is learned: it gets better, then worse.
    rows = make_rows(12, completion="a a a", split="train") + make_rows(
        4, seed=1, completion="b a a", split="validation"
    )
    config = dataclasses.replace(CONFIG, epochs=20, evaluations_per_epoch=3, patience=2, learning_rate=5e-3)
    report = Recorder()
    result = train(rows, source, tmp_path / "sft", config=config, report=report)
    curve = report.points["loss/validation"]
    assert result.best_step > 0
    assert result.num_steps == result.best_step + 2 < 60
    assert result.validation_loss == {"first": curve[0], "best": min(curve)}
    again = Recorder()
    kept = ModelSource(source.base, result.folder)
    train(rows, kept, tmp_path / "again", config=dataclasses.replace(config, epochs=1), report=again)
    assert again.points["loss/validation"][0] == pytest.approx(min(curve), abs=1e-6)
    assert any(f"Kept the weights after step {result.best_step}" in line for line in report.lines)


def test_without_patience_it_goes_on(source: ModelSource, tmp_path: Path) -> None:
    rows = make_rows(12, completion="a a a", split="train") + make_rows(
        4, seed=1, completion="b c d", split="validation"
    )
    config = dataclasses.replace(CONFIG, epochs=4, patience=None)
    result = train(rows, source, tmp_path / "sft", config=config)
    assert result.num_steps == 12
    assert result.best_step < 12


def test_the_best_weights_survive_a_kill(source: ModelSource, tmp_path: Path) -> None:
    # Validation first gets better, then worse; the checkpoint is later, and the best weights must come back from it.
    rows = make_rows(16, completion="a a a", split="train") + make_rows(
        4, seed=1, completion="b a a", split="validation"
    )
    config = dataclasses.replace(CONFIG, epochs=3, patience=None, learning_rate=1e-2)
    kept: list[Path] = []
    whole = train(rows, source, tmp_path / "whole", config=config)

    def keep(folder: Path) -> None:
        kept.append(Path(shutil.copytree(folder, tmp_path / f"kept{len(kept)}")))

    train(rows, source, tmp_path / "watched", config=config, on_checkpoint=keep)
    resumed = train(rows, source, tmp_path / "resumed", config=config, resume_from=kept[-1])
    assert 0 < whole.best_step < 8
    assert sha256_file(whole.folder / "model.safetensors") == sha256_file(resumed.folder / "model.safetensors")


def test_a_checkpoint_of_other_data_is_refused(source: ModelSource, tmp_path: Path) -> None:
    kept: list[Path] = []
    train(make_rows(20), source, tmp_path / "one", on_checkpoint=kept.append)
    with pytest.raises(ValueError, match="another run's: dataset_sha256 differ"):
        train(make_rows(20, seed=5), source, tmp_path / "other", resume_from=kept[-1])


def test_a_version_names_its_files_and_opens_again(source: ModelSource, tmp_path: Path) -> None:
    result = train(make_rows(8), source, tmp_path / "sft", config=dataclasses.replace(CONFIG, lora=LORA))
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["model"], manifest["parents"]) == ("sft", "tiny", {"sft": None})
    names = {path.name for path in result.folder.iterdir()} - {"manifest.json"}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    assert manifest["files"] == {name: sha256_file(result.folder / name) for name in names}
    assert load_causal_lm(ModelSource(source.base, result.folder)) is not None
    assert json.loads(json.dumps(result.as_json()))["num_conversations"] == 8


def test_an_over_long_conversation_is_named_and_the_others_are_learned(source: ModelSource, tmp_path: Path) -> None:
    report = Recorder()
    long = {"id": "too-long", "prompt": "a", "completion": "a " * 70}
    result = train([*make_rows(8), long], source, tmp_path / "sft", report=report)
    assert result.num_conversations == 8
    assert [row["conversation_id"] for row in result.refused] == ["too-long"]
    assert any("too-long was left out: It has 74 tokens, over the limit of 64" in line for line in report.lines)


@pytest.mark.parametrize("rows", [[], make_rows(3, split="validation")])
def test_nothing_to_learn_from_is_said(source: ModelSource, rows: list[Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"no conversation to learn from: {len(rows)} conversations, of them 0 refused"
    ):
        train(rows, source, tmp_path / "sft")


def test_a_cancelled_run_stops_and_leaves_no_version(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(RunCancelled):
        train(make_rows(20), source, tmp_path / "sft", report=Recorder(stop_at=3))
    assert not (tmp_path / "sft").exists()


def test_a_loss_that_is_not_finite_fails_and_keeps_the_last_checkpoint(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"failed at step \d: the (loss|gradient) is NaN or infinite"):
        train(make_rows(20), source, tmp_path / "sft", config=config)
    weights = load_file(tmp_path / "sft.checkpoint" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "sft").exists()


def test_the_rate_rises_and_follows_a_cosine_to_its_last_tenth() -> None:
    config = SFTConfig(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate_at(step, 20, config) for step in range(21)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[11] == pytest.approx(0.55)  # half of the way down: 0.1 + 0.9 / 2
    assert rates[20] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


# --- Rows ---


def test_a_share_is_held_out_by_what_was_asked_first() -> None:
    rows = to_conversations([{"prompt": f"question {number}", "completion": "x"} for number in range(2000)])
    held_out = [row for row in rows if row.split_by(0.05) == "validation"]
    assert 60 < len(held_out) < 140
    again = dataclasses.replace(held_out[0], messages=(*held_out[0].messages, *rows[0].messages), id="longer")
    assert again.split_by(0.05) == "validation"
    assert all(dataclasses.replace(row, split="train").split_by(1.0) == "train" for row in rows)


def test_a_handful_is_never_held_out_by_hash(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, validation_ratio=0.5)
    few = train(make_rows(8), source, tmp_path / "few", config=config)
    assert (few.num_conversations, few.validation_loss) == (8, None)
    many = train(make_rows(40), source, tmp_path / "many", config=config)
    assert many.num_conversations <= 32
    assert many.validation_loss is not None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "must end with the assistant's turn, or go with `completion`"),
        ({"completion": "a"}, "the field 'prompt' is missing"),
        ({"prompt": "a", "completion": " "}, "the content of assistant's turn must be a text that is not empty"),
        ({"prompt": "a", "completion": 3}, "must be a text that is not empty"),
        ({"prompt": "a", "completion": "b", "split": "test"}, "test prompts never train a model"),
        ({"messages": [{"role": "tool", "content": "a"}], "completion": "b"}, "a role must be system, user, assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must not begin with the assistant's turn"),
        ("a", "must be an object"),
    ],
)
def test_a_bad_row_is_named_with_its_rule(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Row 2: .*{message}"):
        to_conversations([make_rows(1)[0], row])


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    with pytest.raises(ValueError, match=r"data.jsonl, line 2: not valid JSON"):
        read_conversations(tmp_path / "data.jsonl")
