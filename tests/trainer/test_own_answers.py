"""Best-of-n against its closed forms, fine-tuning on the best and on the right answers, and checks of answers."""

import dataclasses
import itertools
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.tiny import make_model, make_tokenizer, save_tiny
from trainer.best_of_n import BestOfNResult, choose_best, kl_bound, scorer_of, train_best_of_n
from trainer.checks import Check, CheckTimeout
from trainer.config import BestOfNConfig, RewardConfig, SFTConfig, StarConfig
from trainer.own_answers import Drawn, Verdict, draw_answers
from trainer.preferences import Answer, Ranking
from trainer.reporting import SilentReporter
from trainer.reward import train_reward
from trainer.sampling import LocalSampler, Prompt, encode_prompt
from trainer.star import CheckedPrompt, StarResult, judge_by, train_star
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

SFT = SFTConfig(lora=None, epochs=2, learning_rate=3e-3, conversations_per_batch=4, checkpoint_every=1)
BEST_OF_N = BestOfNConfig(n=4, max_new_tokens=4, prompts_per_checkpoint=4, sft=SFT)
STAR = StarConfig(n=8, max_new_tokens=4, prompts_per_checkpoint=4, sft=SFT)
EOS = 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(save_tiny(tmp_path_factory.mktemp("models") / "tiny", spread=0.1))


@pytest.fixture(scope="module")
def reward(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """It likes "a"."""
    texts = ["a a", "a b", "c a", "c d"]
    rankings = []
    for number, (one, other) in enumerate(itertools.permutations(texts, 2)):
        answers = (Answer("x", one), Answer("y", other))
        counts = [one.count("a"), other.count("a")]
        places = tuple(sum(count > own for count in counts) for own in counts)
        messages = [{"role": "user", "content": "b c"}]
        rankings.append(Ranking(f"r{number}", "p", messages, answers, places))
    out = tmp_path_factory.mktemp("models") / "reward"
    config = RewardConfig(lora=None, learning_rate=3e-3, epochs=10)
    train_reward(rankings, source=source, config=config, out=out, report=SilentReporter())
    return ModelSource(source.base, out)


def make_prompts(num: int) -> list[Prompt]:
    words = list(itertools.product("abcd", repeat=3))
    return [Prompt(f"p{n}", [{"role": "user", "content": " ".join(words[n])}]) for n in range(num)]


# --- Best of n ---


@pytest.mark.parametrize("n", [2, 8])
def test_best_of_n_is_the_closed_form_on_an_enumerable_law(n: int) -> None:
    """Answers of one token: the law is known, and so is that of the best of n, F^n - (F before it)^n."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    sampler = LocalSampler(model, tokenizer, sequences_per_batch=512)
    messages = [{"role": "user", "content": "a b"}]
    num = 1000
    prompts = [Prompt(f"p{number}", messages) for number in range(num)]
    drawn = draw_answers(sampler, prompts, n=n, temperature=1.0, max_new_tokens=1, seed=3)
    with torch.no_grad():
        logits = model(torch.tensor([encode_prompt(tokenizer, messages)])).logits[0, -1]
    law = logits.double().softmax(0).tolist()
    # Special tokens have no text, so that their answers are equal: one outcome, called "".
    words = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(law))]
    mass = {word: sum(p for p, w in zip(law, words, strict=True) if w == word) for word in words}
    worth = {word: math.sin(3.0 * number) for number, word in enumerate(sorted(mass))}

    def score_all(conversations: Sequence[tuple[Any, Answer]]) -> list[float]:
        return [worth[answer.text] for _, answer in conversations]

    chosen = [best.answer.text for best in choose_best(drawn, score_all) if best]
    below, exact = 0.0, {}
    for word in sorted(mass, key=lambda word: worth[word]):
        exact[word] = (below + mass[word]) ** n - below**n
        below += mass[word]
    mean = sum(exact[word] * worth[word] for word in exact)
    spread = math.sqrt(sum(exact[word] * (worth[word] - mean) ** 2 for word in exact))
    assert len(chosen) == num
    assert abs(sum(worth[word] for word in chosen) / num - mean) < 3 * spread / math.sqrt(num)

    ratios = [math.log(exact[word] / mass[word]) for word in chosen]
    kl = sum(ratios) / num
    sigma = math.sqrt(sum((ratio - kl) ** 2 for ratio in ratios) / num / num)
    assert kl <= kl_bound(n) + 3 * sigma
    # It is no estimate of nothing: it is the exact KL, within the noise.
    assert kl == pytest.approx(sum(p * math.log(p / mass[word]) for word, p in exact.items()), abs=3 * sigma)


def test_the_bound_is_what_a_continuous_law_reaches() -> None:
    # Density of the best of n uniforms: n u^(n-1); its KL to the uniform is log n - (n-1)/n.
    num = 200_000
    for n in (1, 2, 16):
        grid = [(place + 0.5) / num for place in range(num)]
        densities = [n * u ** (n - 1) for u in grid]
        kl = sum(p * math.log(p) for p in densities if p > 0) / num
        assert kl_bound(n) == pytest.approx(kl, abs=1e-4)


def test_draws_are_independent_and_the_same_in_any_company() -> None:
    tokenizer = make_tokenizer()
    prompts = [*make_prompts(3), Prompt("long", [{"role": "user", "content": "a " * 70}])]
    texts = []
    for size in (1, 100):
        sampler = LocalSampler(make_model(tokenizer), tokenizer, sequences_per_batch=size)
        found = draw_answers(sampler, prompts, n=20, temperature=1.0, max_new_tokens=1, seed=3)
        texts.append([[answer.text for answer in item.answers] for item in found])
    assert texts[0] == texts[1]
    assert [len(answers) for answers in texts[0]] == [20, 20, 20, 0]
    assert len(set(texts[0][0])) < 20  # nothing is drawn again because it is there already
    assert found[3].refusal is not None
    assert "Prompt long has 72 tokens" in found[3].refusal


def test_the_first_of_equal_answers_is_kept_and_nan_is_refused() -> None:
    answers = [Answer("0", "a"), Answer("1", "b"), Answer("2", "c")]
    drawn = [Drawn(Prompt("p", [{"role": "user", "content": "a"}]), answers)]
    (best,) = choose_best(drawn, lambda _: [1.0, 2.0, 2.0])
    assert best is not None
    assert best.index == 1
    with pytest.raises(ValueError, match="score of an answer to the prompt p is NaN"):
        choose_best(drawn, lambda _: [1.0, math.nan, 2.0])


# --- Fine-tuning on own answers ---


def reject(source: ModelSource, reward: ModelSource, out: Path, **changes: Any) -> BestOfNResult:
    options: dict[str, Any] = {"config": BEST_OF_N, "report": SilentReporter(), "prompts": make_prompts(12)} | changes
    return train_best_of_n(options.pop("prompts"), policy=source, reward=reward, out=out, **options)


def mean_reward(source: ModelSource, reward: ModelSource, out: Path) -> float:
    """Of answers to prompts that were not learned, by a run whose version is thrown away."""
    return reject(source, reward, out, prompts=make_prompts(64)[40:]).reward["mean"]


def test_what_is_learned_has_a_higher_reward(source: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    sft = dataclasses.replace(SFT, epochs=6, learning_rate=1e-2)
    config = dataclasses.replace(BEST_OF_N, n=8, sft=sft)
    result = reject(source, reward, tmp_path / "policy", config=config, prompts=make_prompts(40))
    assert result.num_prompts == 40
    assert result.num_answers == 320
    assert result.num_kept + result.num_cut == 40
    assert result.reward["best"] > result.reward["mean"]
    assert result.kl_bound == pytest.approx(math.log(8) - 7 / 8)
    after = mean_reward(ModelSource(source.base, result.folder), reward, tmp_path / "after")
    assert after > mean_reward(source, reward, tmp_path / "before")
    assert json.loads(json.dumps(result.as_json()))["sft"]["num_conversations"] <= 40


class Killed(BaseException):
    """Stands for kill -9 right after a checkpoint was delivered."""


@pytest.mark.parametrize("die_at", [2, 3, 4, 5])
def test_a_killed_run_goes_on_bit_for_bit(
    source: ModelSource, reward: ModelSource, die_at: int, tmp_path: Path
) -> None:
    """Checkpoints 1 to 3 are of drawing, the later ones of learning."""
    whole = reject(source, reward, tmp_path / "whole")
    checkpoints: list[Path] = []

    def keep_and_die(folder: Path) -> None:
        checkpoints.append(Path(shutil.copytree(folder, tmp_path / f"kept{len(checkpoints)}")))
        if len(checkpoints) == die_at:
            raise Killed

    with pytest.raises(Killed):
        reject(source, reward, tmp_path / "killed", on_checkpoint=keep_and_die)
    resumed = reject(source, reward, tmp_path / "resumed", resume_from=checkpoints[-1])
    one, other = (load_file(result.folder / "model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)
    told = [result.as_json() for result in (whole, resumed)]
    for result in told:
        result["seconds"] = result["sft"]["seconds"] = 0
    assert told[0] == told[1]


@pytest.mark.parametrize("num_checkpoints", [1, 4])
def test_a_checkpoint_of_other_prompts_is_refused(
    source: ModelSource, reward: ModelSource, num_checkpoints: int, tmp_path: Path
) -> None:
    checkpoints: list[Path] = []

    def keep(folder: Path) -> None:
        checkpoints.append(Path(shutil.copytree(folder, tmp_path / f"kept{len(checkpoints)}")))

    reject(source, reward, tmp_path / "one", on_checkpoint=keep)
    with pytest.raises(ValueError, match=r"another run's: .*prompts_sha256"):
        reject(
            source,
            reward,
            tmp_path / "other",
            prompts=make_prompts(20),
            resume_from=checkpoints[num_checkpoints - 1],
        )


def test_the_best_whole_answer_is_learned_where_the_best_one_was_cut(
    source: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    kept: list[Path] = []
    result = reject(source, reward, tmp_path / "policy", on_checkpoint=kept.append)
    rows = json.loads((kept[-1] / "state.json").read_text())["progress"]["carried"]["kept"]
    assert {row["finish_reason"] for row in rows} == {"stop"}
    tokenizer, model = load_tokenizer(source), load_causal_lm(source)
    drawn = draw_answers(
        LocalSampler(model, tokenizer), make_prompts(12), n=4, temperature=1.0, max_new_tokens=4, seed=BEST_OF_N.seed
    )
    num_cut_best = 0
    expected = []
    for best in choose_best(drawn, scorer_of(reward)):
        assert best is not None
        num_cut_best += best.answer.finish_reason == "length"
        whole = [i for i, answer in enumerate(best.drawn.answers) if answer.finish_reason == "stop" and answer.text]
        if whole:
            index = max(whole, key=lambda i: best.scores[i])
            expected.append(f"{best.drawn.prompt.id}#{index}")
    assert num_cut_best > 0
    assert [row["id"] for row in rows] == expected
    assert result.num_kept == len(expected) == 12 - result.num_cut


def test_only_cut_answers_are_nothing_to_learn_from(source: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(BEST_OF_N, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"no answer to learn from: 48 answers to 12 prompts .* cut by length"):
        reject(source, reward, tmp_path / "policy", config=config)


def checked(num: int, check: Mapping[str, Any]) -> list[CheckedPrompt]:
    return [
        CheckedPrompt.from_json({"id": prompt.id, "messages": prompt.messages, "meta": {"check": check}})
        for prompt in make_prompts(num)
    ]


def star(source: ModelSource, out: Path, prompts: list[CheckedPrompt], **changes: Any) -> StarResult:
    options: dict[str, Any] = {"config": STAR, "report": SilentReporter(), "policy": source} | changes
    return train_star(prompts, sft=source, out=out, **options)


def test_answers_that_pass_become_likelier(source: ModelSource, tmp_path: Path) -> None:
    prompts = checked(40, {"kind": "regex", "value": r"\ba\b"})
    sft = dataclasses.replace(SFT, epochs=6, learning_rate=1e-2)
    result = star(source, tmp_path / "policy", prompts, config=dataclasses.replace(STAR, sft=sft))
    assert result.num_answers == 320
    assert 40 < result.num_right < 320
    assert result.num_kept <= result.num_solved <= 40
    after = star(source, tmp_path / "after", prompts, policy=ModelSource(source.base, result.folder))
    assert after.num_right > 1.3 * result.num_right


def test_what_passes_is_learned_once_and_never_cut(source: ModelSource, tmp_path: Path) -> None:
    prompts = checked(12, {"kind": "regex", "value": "[ab]"})
    learned = []
    for most in (1, 3):
        config = dataclasses.replace(STAR, answers_per_prompt=most)
        kept: list[Path] = []
        result = star(source, tmp_path / f"policy{most}", prompts, config=config, on_checkpoint=kept.append)
        rows = json.loads((kept[-1] / "state.json").read_text())["progress"]["carried"]["kept"]
        assert len(rows) == result.num_kept
        texts = [(row["id"].split("#")[0], row["messages"][-1]["content"]) for row in rows]
        assert len(set(texts)) == len(texts)
        assert {row["finish_reason"] for row in rows} == {"stop"}
        assert all("a" in text or "b" in text for _, text in texts)
        learned.append(len(rows))
    assert learned[0] < learned[1]


def test_an_answer_that_was_cut_takes_no_place() -> None:
    answers = [Answer("0", "a b", "length"), Answer("1", "a c", "stop"), Answer("2", "a d", "stop")]
    judge = judge_by({"p": Check("regex", "a")}, answers_per_prompt=1)
    (verdict,) = judge([Drawn(Prompt("p", []), answers)])
    assert verdict == Verdict([1], {"right": 3, "solved": 1, "timeouts": 0})


# --- Checks ---


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            {"kind": "exact", "value": "Paris, France"},
            ["Paris, France", " Paris,\n France "],
            ["paris, france", "Paris"],
        ),
        ({"kind": "numeric", "value": 1234}, ["so it is 1,234.", "3 and then 1234.0", "= 1.234e3"], ["1234 or 5", ""]),
        ({"kind": "numeric", "value": "-0.5"}, ["-0.5", "it is -.5"], ["0.5", "five"]),
        ({"kind": "numeric", "value": 3.14, "tolerance": 0.01}, ["about 3.145"], ["3.2", "1e999"]),
        ({"kind": "regex", "value": r"(?i)^yes\b"}, ["Yes, it is"], ["no, yes", "yesterday"]),
    ],
)
def test_right_and_wrong_answers(check: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    found = Check.from_json(check)
    assert [text for text in right if not found.passes(text)] == []
    assert [text for text in wrong if found.passes(text)] == []


def test_a_pattern_that_would_run_for_ever_is_stopped() -> None:
    check = Check.from_json({"kind": "regex", "value": r"^(\w|\w\w)+$"})
    started = time.monotonic()
    with pytest.raises(CheckTimeout):
        check.passes("a" * 5000 + "!")
    assert time.monotonic() - started < 60  # without the limit: for ever; generous for a busy machine


def test_an_answer_that_takes_too_long_is_wrong_and_counted(
    source: ModelSource, tmp_path: Path, monkeypatch: Any
) -> None:
    def slow(self: Check, answer: str) -> bool:
        if "b" in answer:
            raise CheckTimeout("it took over 0.2 s.")
        return True

    monkeypatch.setattr(Check, "passes", slow)
    result = star(source, tmp_path / "policy", checked(12, {"kind": "regex", "value": "x"}))
    assert result.num_timeouts > 0
    assert result.num_right == result.num_answers - result.num_timeouts


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (None, "check: must be an object"),
        ({"kind": "python", "value": "1"}, "check.kind: must be exact, numeric or regex, and is 'python'"),
        ({"kind": "numeric", "value": "many"}, "check.value: must be a number, and is 'many'"),
        ({"kind": "numeric", "value": True}, "check.value: must be a number"),
        ({"kind": "numeric", "value": 1, "tolerance": -1}, "check.tolerance: must be a number of at least 0"),
        ({"kind": "exact", "value": ""}, "check.value: must be a text"),
        ({"kind": "regex", "value": "("}, "is no regular expression"),
        ({"kind": "regex", "value": "a" * 1001}, "at most 1000 characters, not 1001"),
        ({"kind": "exact", "value": "a", "flags": "i"}, "check.flags is not known"),
    ],
)
def test_a_bad_check_is_named_with_its_prompt(check: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"Prompt q7: meta\..*" + message):
        CheckedPrompt.from_json({"id": "q7", "messages": [], "meta": {"check": check}})
