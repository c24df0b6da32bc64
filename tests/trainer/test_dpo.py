"""DPO: the loss is the formula's, a ranking counts once, the optimum is the analytic one, a killed run goes on."""

import dataclasses
import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.tiny import Recorder, save_tiny
from trainer.config import DPOConfig, LoraConfig
from trainer.dpo import DPOResult, dpo_loss, train_dpo
from trainer.preferences import Answer, Ranking
from trainer.reporting import RunCancelled, SilentReporter
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
CONFIG = DPOConfig(lora=None, learning_rate=1e-3, rankings_per_batch=4, checkpoint_every=2, warmup_ratio=0.0)
EOS = 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(save_tiny(tmp_path_factory.mktemp("models") / "tiny", spread=0.1))


def make_rankings(num: int, *, k: int = 3, seed: int = 0, ties: bool = False, **changes: Any) -> list[Ranking]:
    """More "a" is better; with `ties`, the first two of each are tied."""
    chance = random.Random(seed)
    rankings = []
    for number in range(num):
        texts = [" ".join(chance.choices("abcd", k=chance.randint(1, 5))) for _ in range(k)]
        order = sorted(range(k), key=lambda index: (-texts[index].split().count("a"), index))
        places = [order.index(index) for index in range(k)]
        if ties:
            places[order[1]] = places[order[0]]
        answers = tuple(Answer(f"{number}-{index}", text) for index, text in enumerate(texts))
        messages = [{"role": "user", "content": " ".join(chance.choices("abcd", k=3))}]
        rankings.append(Ranking(f"r{number}", f"p{number}", messages, answers, tuple(places), **changes))
    return rankings


def train(rankings: list[Ranking], source: ModelSource, out: Path, **changes: Any) -> DPOResult:
    options: dict[str, Any] = {"config": CONFIG, "report": SilentReporter(), "policy": source} | changes
    return train_dpo(rankings, sft=source, out=out, **options)


# --- The loss ---


def test_a_pair_worked_by_hand() -> None:
    # r = (1, 0): -log sigmoid(1) = 0.313262. Tied, nu = 2: total = e^0.5 + e^-0.5 + 2, p(tie) = 2 / 4.255252.
    reward = torch.tensor([[1.0, 0.0]])
    better, tied = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.5], [0.5, 0.0]]])
    davidson = dataclasses.replace(CONFIG, ties="davidson")
    assert dpo_loss(reward, better, CONFIG).item() == pytest.approx(0.3132617)
    assert dpo_loss(reward, tied, dataclasses.replace(CONFIG, ties="half")).item() == pytest.approx(0.8132617)
    assert dpo_loss(reward, tied, davidson).item() == pytest.approx(-math.log(2 / 4.2552519))
    assert dpo_loss(reward, better, davidson).item() == pytest.approx(-math.log(math.exp(0.5) / 4.2552519))


@pytest.mark.parametrize("ties", ["drop", "half", "davidson"])
def test_the_loss_equals_a_slow_double_loop(source: ModelSource, ties: Any, tmp_path: Path) -> None:
    """Rankings of mixed K with ties, by a policy that is not its reference; every log-probability token by token."""
    rankings = make_rankings(3, k=4, ties=True) + make_rankings(2, k=2, seed=5)
    moved = ModelSource(save_tiny(tmp_path / "moved", seed=4, spread=0.1))
    policy = ModelSource(source.base, tmp_path / "version")
    shutil.copytree(moved.base, tmp_path / "version")
    config = dataclasses.replace(CONFIG, ties=ties, rankings_per_batch=5, beta=0.3, tie_nu=1.5)
    report = Recorder()
    train(rankings, source, tmp_path / "dpo", config=config, policy=policy, report=report)
    models = [load_causal_lm(which).double() for which in (policy, source)]
    tokenizer = load_tokenizer(source)

    def reward(ranking: Ranking, answer: Answer) -> float:
        prompt = tokenizer.encode(f"User: {ranking.messages[0]['content']}\nAssistant:")
        said = [*tokenizer.encode(answer.text), EOS]
        sums = []
        for model in models:
            logits = model(torch.tensor([prompt + said])).logits[0].log_softmax(dim=1)
            sums.append(sum(logits[len(prompt) + n - 1, token].item() for n, token in enumerate(said)))
        return float(0.3 * (sums[0] - sums[1]))

    losses = []
    for ranking in rankings:
        rewards = [reward(ranking, answer) for answer in ranking.answers]
        pairs = []
        for i, j in itertools.permutations(range(len(rewards)), 2):
            d = rewards[i] - rewards[j]
            place, other = ranking.places[i], ranking.places[j]
            assert place is not None
            assert other is not None
            if place < other and ties == "davidson":
                pairs.append((1.0, math.log(1 + math.exp(-d) + 1.5 * math.exp(-d / 2))))
            elif place < other:
                pairs.append((1.0, math.log(1 + math.exp(-d))))
            elif place == other and ties == "half":
                pairs.append((0.5, math.log(1 + math.exp(-d))))
            elif place == other and ties == "davidson":
                pairs.append((0.5, math.log((math.exp(d / 2) + math.exp(-d / 2) + 1.5) / 1.5)))
        losses.append(sum(w * loss for w, loss in pairs) / sum(w for w, _ in pairs))
    assert report.points["loss/dpo"][0] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("lora", [LORA, None])
def test_before_the_first_step_the_policy_is_its_reference(
    source: ModelSource, lora: LoraConfig | None, tmp_path: Path
) -> None:
    report = Recorder()
    config = dataclasses.replace(CONFIG, lora=lora)
    train(make_rankings(8), source, tmp_path / "dpo", config=config, report=report)
    assert report.points["loss/dpo"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert report.points["dpo/margin"][0] == pytest.approx(0.0, abs=1e-6)
    assert report.points["loss/dpo"][1] != pytest.approx(math.log(2), abs=1e-6)


def test_the_reference_stays_where_it_was(source: ModelSource, tmp_path: Path) -> None:
    """A second run that starts from the first one's version, with the SFT version as its reference."""
    config = dataclasses.replace(CONFIG, lora=LORA)
    rankings = make_rankings(12)
    first = train(rankings, source, tmp_path / "one", config=config)
    report = Recorder()
    policy = ModelSource(source.base, first.folder)
    train(rankings, source, tmp_path / "two", config=config, policy=policy, report=report)
    assert report.points["loss/dpo"][0] < math.log(2) - 1e-4
    assert report.points["dpo/margin"][0] > 1e-4


# --- The optimum ---


def test_it_moves_to_the_analytic_optimum_of_an_enumerable_task(source: ModelSource, tmp_path: Path) -> None:
    """Four answers, whose pairs are won by Bradley and Terry's law of known utilities u. The paper's eq. 4: the optimum
    is pi_ref exp(u / beta) / Z, so that log(pi / pi_ref), up to a constant, is u / beta: order and distances."""
    utility = {"a": 0.6, "b": 0.2, "c": -0.2, "d": -0.6}
    chance = random.Random(1)
    rankings = []
    for number in range(600):
        one, other = chance.sample("abcd", 2)
        wins = chance.random() < 1 / (1 + math.exp(utility[other] - utility[one]))
        answers = (Answer("x", one), Answer("y", other))
        messages = [{"role": "user", "content": "a b"}]
        rankings.append(Ranking(f"r{number}", "p", messages, answers, (0, 1) if wins else (1, 0)))
    beta = 0.5
    config = DPOConfig(lora=None, beta=beta, learning_rate=1e-2, rankings_per_batch=60, epochs=6)
    result = train(rankings, source, tmp_path / "dpo", config=config)
    tokenizer = load_tokenizer(source)
    prompt = tokenizer.encode("User: a b\nAssistant:")
    moved = []
    for word in "abcd":
        tokens = torch.tensor([[*prompt, *tokenizer.encode(word), EOS]])
        sums = []
        for which in (ModelSource(source.base, result.folder), source):
            logits = load_causal_lm(which)(tokens).logits[0].log_softmax(dim=1)
            sums.append(sum(logits[len(prompt) + n - 1, tokens[0, len(prompt) + n]].item() for n in range(2)))
        moved.append(sums[0] - sums[1])
    centred = [beta * (value - sum(moved) / 4) for value in moved]
    assert centred == sorted(centred, reverse=True)
    # 600 comparisons, 300 of each answer: a utility is known to about 0.1.
    assert centred == pytest.approx(list(utility.values()), abs=0.3)


def test_a_tie_pulls_equal_answers_back_together(source: ModelSource, tmp_path: Path) -> None:
    """A policy that is away from its reference learns from ties alone: rewards of tied answers become equal, which has
    the loss -log(nu / (2 + nu)) = log 2 at nu = 2."""
    moved = ModelSource(source.base, save_tiny(tmp_path / "moved", seed=4, spread=0.1))
    tied = [dataclasses.replace(ranking, places=(0, 0)) for ranking in make_rankings(4, k=2)]
    config = dataclasses.replace(CONFIG, ties="davidson", beta=2.0, epochs=30, learning_rate=3e-3)
    report = Recorder()
    train(tied, source, tmp_path / "dpo", config=config, policy=moved, report=report)
    curve = report.points["loss/dpo"]
    assert curve[0] > math.log(2) + 0.01
    assert curve[-1] == pytest.approx(math.log(2), abs=0.1 * (curve[0] - math.log(2)))


# --- The run ---


def test_how_the_work_is_cut_does_not_matter(source: ModelSource, tmp_path: Path) -> None:
    rankings = [*make_rankings(6), *make_rankings(5, k=2, seed=3)]
    losses = []
    for number, change in enumerate([{}, {"tokens_per_forward": 1}, {"tokens_per_forward": 50}]):
        report = Recorder()
        config = dataclasses.replace(CONFIG, epochs=2, **change)
        train(rankings, source, tmp_path / f"dpo{number}", config=config, report=report)
        losses.append(report.points["loss/dpo"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_it_learns_and_measures_held_out_pairs(source: ModelSource, tmp_path: Path) -> None:
    rankings = [*make_rankings(60), *make_rankings(30, seed=2, split="validation")]
    config = dataclasses.replace(CONFIG, epochs=4, learning_rate=3e-3)
    result = train(rankings, source, tmp_path / "dpo", config=config)
    assert result.accuracy is not None
    assert result.accuracy.low > 0.55
    assert result.loss < math.log(2)
    assert json.loads(json.dumps(result.as_json()))["num_pairs"] == 180


def test_rankings_of_ties_alone_are_learned_or_refused_by_name(source: ModelSource, tmp_path: Path) -> None:
    tied = [dataclasses.replace(ranking, places=(0, 0, 0)) for ranking in make_rankings(4)]
    with pytest.raises(ValueError, match="no ranking to learn from: 4 rankings, of them 4 refused"):
        train(tied, source, tmp_path / "dpo")
    result = train(tied, source, tmp_path / "tied", config=dataclasses.replace(CONFIG, ties="davidson"))
    assert (result.num_rankings, result.num_pairs, result.margin) == (4, 12, 0.0)


def test_a_cancelled_run_stops_and_leaves_no_version(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(RunCancelled):
        train(make_rankings(20), source, tmp_path / "dpo", report=Recorder(stop_at=3))
    assert not (tmp_path / "dpo").exists()


def test_a_loss_that_is_not_finite_fails_and_keeps_the_last_checkpoint(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"failed at step \d: the (loss|gradient) is NaN or infinite"):
        train(make_rankings(20), source, tmp_path / "dpo", config=config)
    weights = load_file(tmp_path / "dpo.checkpoint" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
