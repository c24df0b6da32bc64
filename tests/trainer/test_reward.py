"""Training a reward model: it learns what people mean, the same however the work is cut, and goes on after a kill."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.tiny import Recorder, save_tied, save_tiny
from trainer.config import LoraConfig, RewardConfig
from trainer.cross_validation import cross_validate
from trainer.data import encode_rankings
from trainer.fitting import learning_rate_at
from trainer.folders import sha256_file
from trainer.preferences import Answer, Ranking
from trainer.reporting import RunCancelled, SilentReporter
from trainer.reward import RewardResult, _accumulate, _accumulate_text, _importance, ranking_loss, train_reward
from trainer.reward_model import RewardModel
from trainer.scorer import Scorer, StateCache, score, score_with_doubt
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
CONFIG = RewardConfig(
    lora=None, epochs=1, learning_rate=3e-3, rankings_per_batch=8, checkpoint_every=2, warmup_ratio=0.0
)
UTILITY = {"a": 1.0, "b": 0.3, "c": -0.3, "d": -1.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(save_tiny(tmp_path_factory.mktemp("models") / "tiny", spread=0.1))


def utility(text: str) -> float:
    return sum(UTILITY[word] for word in text.split())


def make_rankings(num: int, *, k: int = 4, seed: int = 0, **changes: Any) -> list[Ranking]:
    """Answers of a few words, ranked by Plackett-Luce: the utilities plus Gumbel noise, best first."""
    chance = random.Random(seed)
    rankings = []
    for number in range(num):
        texts = [" ".join(chance.choices("abcd", k=chance.randint(1, 6))) for _ in range(k)]
        noisy = [utility(text) - math.log(-math.log(chance.random())) for text in texts]
        answers = tuple(Answer(f"{number}-{index}", text) for index, text in enumerate(texts))
        places = tuple(sum(other > value for other in noisy) for value in noisy)
        words = " ".join(chance.choices("abcd", k=4))
        messages = [{"role": "user", "content": f"{words} a{number}"}]
        rankings.append(Ranking(f"r{number}", f"p{number}", messages, answers, places, **changes))
    return rankings


def train(rankings: list[Ranking], source: ModelSource, out: Path, **changes: Any) -> RewardResult:
    options: dict[str, Any] = {"config": CONFIG, "report": SilentReporter()} | changes
    return train_reward(rankings, source=source, out=out, **options)


def test_it_learns_plackett_luce_utilities(source: ModelSource, tmp_path: Path) -> None:
    held_out = make_rankings(120, seed=1, split="validation")
    config = dataclasses.replace(CONFIG, epochs=2, rankings_per_batch=16)
    report = Recorder()
    result = train([*make_rankings(400), *held_out], source, tmp_path / "reward", config=config, report=report)
    pairs = [(held.answers[i].text, held.answers[j].text) for held in held_out for i, j in held.ordered_pairs]
    best = sum((utility(one) > utility(other)) + 0.5 * (utility(one) == utility(other)) for one, other in pairs)
    assert result.accuracy is not None
    assert result.accuracy.value >= best / len(pairs) - 0.02
    assert report.points["accuracy/validation"][-1] == result.accuracy.value
    assert json.loads(json.dumps(result.as_json()))["report"]["accuracy"] == result.accuracy.as_json()
    assert result.report["calibration"]["error"] < 0.15
    assert report.points["loss/reward"][-1] < report.points["loss/reward"][0]
    assert (result.num_rankings, result.num_pairs, result.accuracy.num_prompts) == (400, 2400, 120)


def measure(rankings: list[Ranking], scores: list[list[float]]) -> tuple[float, float, float]:
    """(accuracy, mean -log sigmoid) over ordered pairs, and the slope of gaps of scores on gaps of utilities."""
    right = nll = above = below = 0.0
    num_pairs = 0
    for ranking, score_of in zip(rankings, scores, strict=True):
        worth = [utility(answer.text) for answer in ranking.answers]
        for better, worse in ranking.ordered_pairs:
            gap, true_gap = score_of[better] - score_of[worse], worth[better] - worth[worse]
            right += (gap > 0) + 0.5 * (gap == 0)
            nll += math.log1p(math.exp(-gap))
            above, below = above + gap * true_gap, below + true_gap**2
            num_pairs += 1
    return right / num_pairs, nll / num_pairs, above / below


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["pairs", "plackett_luce"])
@pytest.mark.parametrize("num_rankings", [2000, pytest.param(4000, marks=pytest.mark.soak)])
def test_many_rankings_teach_the_true_utilities(
    loss: str, num_rankings: int, source: ModelSource, tmp_path: Path
) -> None:
    held_out = make_rankings(1000, seed=1)
    best_accuracy, best_nll, _ = measure(held_out, [[utility(a.text) for a in held.answers] for held in held_out])
    config = dataclasses.replace(CONFIG, loss=loss, rankings_per_batch=16, checkpoint_every=1000)
    result = train(make_rankings(num_rankings), source, tmp_path / "reward", config=config)
    version = ModelSource(source.base, result.folder)
    tasks, _ = encode_rankings(held_out, load_tokenizer(version), max_length=64, ties="drop")
    scores = Scorer(RewardModel.load(version), pad_id=0, config=config).score_tasks(tasks)
    accuracy, nll, slope = measure(held_out, scores)
    assert accuracy >= best_accuracy - 0.01
    assert nll <= best_nll + 0.01
    assert 0.9 <= slope <= 1.1


def test_training_answers_have_mean_zero_and_scores_survive_saving(source: ModelSource, tmp_path: Path) -> None:
    rankings = make_rankings(16)
    result = train(rankings, source, tmp_path / "reward")
    saved = ModelSource(source.base, result.folder)
    asked = [(ranking.messages, answer) for ranking in rankings for answer in ranking.answers]
    scores = torch.tensor(score(RewardModel.load(saved), load_tokenizer(saved), asked))
    assert scores.mean().abs().item() < 1e-5
    assert RewardModel.load(saved).score_std == pytest.approx(scores.std(correction=0).item(), rel=1e-4)


def test_of_many_rankings_some_say_where_zero_is(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.reward.REFERENCE_TASKS", 6)
    rankings = make_rankings(16)
    saved = ModelSource(source.base, train(rankings, source, tmp_path / "reward").folder)
    # Every third one: 0, 3, ..., 15.
    asked = [(ranking.messages, answer) for ranking in rankings[::3] for answer in ranking.answers]
    assert abs(sum(score(RewardModel.load(saved), load_tokenizer(saved), asked))) < 1e-3


def test_without_validation_rows_there_is_no_accuracy(source: ModelSource, tmp_path: Path) -> None:
    result = train(make_rankings(8), source, tmp_path / "reward")
    assert result.accuracy is None
    assert json.loads(json.dumps(result.as_json()))["accuracy"] is None


@pytest.mark.parametrize("lora", [LORA, None])
def test_how_the_work_is_cut_does_not_matter(source: ModelSource, lora: LoraConfig | None, tmp_path: Path) -> None:
    rankings = [*make_rankings(6), *make_rankings(6, k=2, seed=3)]
    config = dataclasses.replace(CONFIG, lora=lora, rankings_per_batch=4, epochs=2)
    losses = []
    for number, (tokens, megabytes, is_shared) in enumerate(
        [(4096, 64, True), (16, 64, True), (4096, 0, True), (4096, 64, False)]
    ):
        report = Recorder()
        cut = dataclasses.replace(config, tokens_per_forward=tokens, cache_megabytes=megabytes, share_prompt=is_shared)
        train(rankings, source, tmp_path / f"reward{number}", config=cut, report=report)
        losses.append(report.points["loss/reward"])
        assert any(("computed once" if is_shared else "share_prompt is off") in line for line in report.lines)
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-5)


def test_the_order_of_rows_in_a_batch_does_not_matter(source: ModelSource, tmp_path: Path) -> None:
    rankings = make_rankings(8)
    first, second = (
        train(rows, source, tmp_path / f"reward{number}").loss for number, rows in enumerate([rankings, rankings[::-1]])
    )
    assert second == pytest.approx(first, abs=1e-5)


def test_rows_do_not_see_each_other(source: ModelSource) -> None:
    tokenizer = load_tokenizer(source)
    tasks, _ = encode_rankings(make_rankings(6), tokenizer, max_length=64, ties="drop")
    scorer = Scorer(RewardModel.from_sft(source, None), pad_id=0, config=CONFIG)
    together = scorer.score_tasks(tasks)
    for task, scores in zip(tasks, together, strict=True):
        assert scorer.score_tasks([task])[0] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("setting", [{}, {"ties": "half"}, {"loss": "plackett_luce"}, {"annotators": "agreement"}])
def test_a_task_has_the_gradient_of_its_rankings_apart(setting: dict[str, Any], source: ModelSource) -> None:
    """Three people a task, in float64: answers that are computed once teach what answers computed three times teach."""
    chance = random.Random(5)
    rankings = [
        dataclasses.replace(ranking, ranking_id=f"{ranking.ranking_id} {who}", annotator=who, places=places)
        for ranking in [*make_rankings(3), *make_rankings(2, k=2, seed=3)]
        for who in ("ann", "bob", "cy")
        if (places := tuple(chance.choices([None, 0, 1, 2, 3], k=len(ranking.answers)))).count(None) < 2
    ]
    config = dataclasses.replace(CONFIG, **setting)
    together, _ = encode_rankings(rankings, load_tokenizer(source), max_length=64, ties="half")
    assert len(together) < sum(len(task.rankings) for task in together)
    apart = [
        dataclasses.replace(task, rankings=(ranking,), weights=[weights])
        for task in together
        for ranking, weights in zip(task.rankings, task.weights, strict=True)
    ]
    importance = _importance(together, config)
    found = []
    for tasks, each in ((together, importance), (apart, torch.cat(importance).split(1))):
        model = RewardModel.from_sft(source, None).double()
        loss, accuracy = _accumulate(Scorer(model, pad_id=0, config=config), tasks, config, each)
        found.append((loss, accuracy, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (loss, accuracy, gradient), (loss_apart, accuracy_apart, gradient_apart) = found
    assert loss == pytest.approx(loss_apart, abs=1e-9)
    assert accuracy == accuracy_apart
    assert ((gradient - gradient_apart).norm() / gradient_apart.norm()).item() < 1e-6


def test_an_answer_is_computed_once_for_all_who_ranked_it(source: ModelSource, tmp_path: Path) -> None:
    people = [
        dataclasses.replace(ranking, ranking_id=f"{ranking.ranking_id} {who}", annotator=who)
        for ranking in make_rankings(12)
        for who in ("ann", "bob", "cy")
    ]
    report = Recorder()
    result = train(people, source, tmp_path / "reward", report=report)
    assert (result.num_rankings, result.num_pairs) == (36, 12 * 6 * 3)
    # Batches count rankings, and take whole tasks: three tasks are the first to reach 8 rankings.
    assert len(report.points["loss/reward"]) == 4


def test_a_checkpoint_of_other_rankings_is_refused(source: ModelSource, tmp_path: Path) -> None:
    kept: list[Path] = []
    train(make_rankings(40), source, tmp_path / "one", on_checkpoint=kept.append)
    with pytest.raises(ValueError, match="another run's: dataset_sha256 differ"):
        train(make_rankings(40, seed=5), source, tmp_path / "other", resume_from=kept[-1])


def test_an_over_long_ranking_is_named_and_the_others_are_learned(source: ModelSource, tmp_path: Path) -> None:
    long = dataclasses.replace(make_rankings(1)[0], ranking_id="too-long")
    long = dataclasses.replace(long, answers=(Answer("x", "a " * 70), *long.answers[1:]))
    report = Recorder()
    result = train([*make_rankings(8), long], source, tmp_path / "reward", report=report)
    assert result.num_rankings == 8
    assert [row["ranking_id"] for row in result.refused] == ["too-long"]
    assert "over the limit of 64 (max_length)" in result.refused[0]["reason"]
    assert any("Ranking too-long was left out" in line for line in report.lines)


@pytest.mark.parametrize(
    "setting", [{"loss": "plackett_luce"}, {"ties": "half"}, {"margin": 0.2, "label_smoothing": 0.1}]
)
def test_every_loss_learns_however_the_work_is_cut(
    setting: dict[str, Any], source: ModelSource, tmp_path: Path
) -> None:
    rankings = with_ties([*make_rankings(40), *make_rankings(24, k=2, seed=3)])
    losses = []
    for number, tokens in enumerate([512, 16]):
        report = Recorder()
        config = dataclasses.replace(CONFIG, epochs=3, tokens_per_forward=tokens, **setting)
        train(rankings, source, tmp_path / f"reward{number}", config=config, report=report)
        losses.append(report.points["loss/reward"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert sum(losses[0][-8:]) < 0.9 * sum(losses[0][:8])


def test_a_margin_counts_the_places_between_two_answers(source: ModelSource) -> None:
    ranking = dataclasses.replace(make_rankings(1, k=3)[0], places=(0, 1, 2))
    group, _ = encode_rankings([ranking], load_tokenizer(source), max_length=64, ties="drop")
    config = RewardConfig(margin=0.5)
    found = ranking_loss(torch.tensor([[2.0, 1.0, -1.0]]), group, config, torch.zeros(()), torch.ones(1))
    # Gaps 1, 2 and 3 must exceed 0.5, 0.5 and 1.0: log(1 + e^-0.5) = 0.474077, e^-1.5: 0.201413, e^-2: 0.126928.
    assert found.item() == pytest.approx((0.474077 + 0.201413 + 0.126928) / 3, abs=1e-6)


def with_ties(rankings: list[Ranking], gap: float = 0.8) -> list[Ranking]:
    """The same, with answers whose true utilities are near each other in the same place."""
    merged = []
    for ranking in rankings:
        values = [utility(answer.text) for answer in ranking.answers]
        steps = [math.floor(value / gap) for value in values]
        merged.append(dataclasses.replace(ranking, places=tuple(sum(o > s for o in set(steps)) for s in steps)))
    return merged


def test_nothing_to_learn_from_is_said(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ranking to learn from: 3 rankings, of them 0 refused and 3 held out"):
        train(make_rankings(3, split="validation"), source, tmp_path / "reward")


def all_tied(num: int) -> list[Ranking]:
    return [dataclasses.replace(ranking, places=(0, 0, 0, 0)) for ranking in make_rankings(num)]


def test_nothing_but_ties_is_refused_by_name_where_ties_are_dropped(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ranking to learn from: 3 rankings, of them 3 refused"):
        train(all_tied(3), source, tmp_path / "reward")


@pytest.mark.parametrize("setting", [{"ties": "half"}, {"ties": "davidson"}, {"loss": "plackett_luce"}])
def test_nothing_but_ties_draws_scores_together(setting: dict[str, Any], source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=3, **setting)
    report = Recorder()
    result = train(all_tied(24), source, tmp_path / "reward", config=config, report=report)
    assert result.num_pairs == 24 * 6
    assert report.points["loss/reward"][-1] < report.points["loss/reward"][0]


def test_one_ranking_is_enough(source: ModelSource, tmp_path: Path) -> None:
    result = train(make_rankings(1), source, tmp_path / "reward", config=dataclasses.replace(CONFIG, epochs=3))
    assert (result.num_rankings, result.num_pairs, result.accuracy) == (1, 6, None)


def test_a_cancelled_run_stops_and_leaves_no_version(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(RunCancelled):
        train(make_rankings(40), source, tmp_path / "reward", report=Recorder(stop_at=3))
    assert not (tmp_path / "reward").exists()


def test_a_loss_that_is_not_finite_fails_and_keeps_the_last_checkpoint(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"failed at step \d: the (loss|gradient) is NaN or infinite"):
        train(make_rankings(40), source, tmp_path / "reward", config=config)
    weights = load_file(tmp_path / "reward.checkpoint" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "reward").exists()


def test_a_version_names_its_files_config_and_dataset(source: ModelSource, tmp_path: Path) -> None:
    result = train(make_rankings(8), source, tmp_path / "reward", dataset_sha256="ab", config=RewardConfig(lora=LORA))
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["dataset_sha256"], manifest["model"]) == ("reward", "ab", "tiny")
    assert manifest["config"]["lora"]["rank"] == 4
    names = {path.name for path in result.folder.iterdir()} - {"manifest.json"}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "reward_head.safetensors", "reward.json"}
    assert manifest["files"] == {name: sha256_file(result.folder / name) for name in names}


def test_the_same_seed_gives_the_same_files(source: ModelSource, tmp_path: Path) -> None:
    hashes: list[dict[str, str]] = []
    for name in ("one", "two"):
        torch.manual_seed(len(hashes))
        result = train(make_rankings(8), source, tmp_path / name, config=dataclasses.replace(CONFIG, lora=LORA))
        hashes.append({path.name: sha256_file(path) for path in result.folder.iterdir()})
    assert hashes[0] == hashes[1]


def test_the_rate_rises_and_follows_a_cosine_to_its_last_tenth() -> None:
    config = RewardConfig(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate_at(step, 20, config) for step in range(20)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[11] == pytest.approx(0.55)  # half of the way down: 0.1 + 0.9 / 2
    assert rates[-1] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 17 / 18)))
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_cross_validation_scores_every_ranking_by_a_model_that_did_not_see_it(source: ModelSource) -> None:
    rankings = make_rankings(90)
    found = cross_validate(rankings, source=source, config=dataclasses.replace(CONFIG, epochs=3), folds=3)
    assert [len(scores) for scores in found.scores] == [4] * 90
    assert found.accuracy.num_pairs == 540
    assert len(found.fold_accuracies) == 3
    assert found.accuracy.low > 0.55
    assert found.report["accuracy"] == found.accuracy.as_json()


def test_cross_validation_of_noise_finds_nothing(source: ModelSource) -> None:
    # Orders that have nothing to do with the texts: whoever sees the held-out answers in training would beat a coin.
    chance = random.Random(4)
    rankings = [dataclasses.replace(ranking, places=tuple(chance.sample(range(4), 4))) for ranking in make_rankings(60)]
    found = cross_validate(rankings, source=source, config=dataclasses.replace(CONFIG, epochs=6), folds=3)
    assert found.accuracy.low < 0.5 < found.accuracy.high


def test_states_that_were_kept_change_nothing(source: ModelSource) -> None:
    cache: StateCache = {}
    config = dataclasses.replace(CONFIG, lora=LORA)
    first, again = (
        cross_validate(make_rankings(12), source=source, config=config, folds=2, cache=cache) for _ in range(2)
    )
    assert len(cache) == 12
    assert first.scores == again.scores


def test_the_reported_loss_is_the_mean_of_the_last_epoch(source: ModelSource, tmp_path: Path) -> None:
    report = Recorder()
    result = train(
        make_rankings(24), source, tmp_path / "reward", config=dataclasses.replace(CONFIG, epochs=2), report=report
    )
    assert result.loss == pytest.approx(sum(report.points["loss/reward"][3:]) / 3)


def say_by_davidson(num: int, theta: float) -> list[Ranking]:
    """Two answers each, whose three outcomes have Davidson's probabilities."""
    chance = random.Random(7)
    rankings = []
    for ranking in make_rankings(num, k=2, seed=8):
        gap = utility(ranking.answers[0].text) - utility(ranking.answers[1].text)
        weights = [math.exp(gap / 2), math.exp(-gap / 2), math.exp(theta)]
        places = chance.choices([(0, 1), (1, 0), (0, 0)], weights)[0]
        rankings.append(dataclasses.replace(ranking, places=places))
    return rankings


def test_davidsons_theta_is_learned_reported_and_saved(source: ModelSource, tmp_path: Path) -> None:
    theta = 0.5
    config = dataclasses.replace(CONFIG, ties="davidson", epochs=3)
    report = Recorder()
    result = train(say_by_davidson(600, theta), source, tmp_path / "reward", config=config, report=report)
    # 600 comparisons know it to about 0.1, and it began from answers of equal worth.
    assert result.tie_theta is not None
    assert result.tie_theta == pytest.approx(theta, abs=0.3)
    assert abs(result.tie_theta - theta) < abs(report.points["reward/tie_theta"][0] - theta)
    saved = RewardModel.load(ModelSource(source.base, result.folder))
    assert saved.tie_theta.item() == pytest.approx(result.tie_theta)
    assert json.loads(json.dumps(result.as_json()))["tie_theta"] == result.tie_theta


def test_theta_goes_on_bit_for_bit(source: ModelSource, tmp_path: Path) -> None:
    rankings = say_by_davidson(40, 0.0)
    config = dataclasses.replace(CONFIG, ties="davidson", checkpoint_every=3)
    kept: list[Path] = []
    whole = train(rankings, source, tmp_path / "whole", config=config, on_checkpoint=kept.append)
    resumed = train(rankings, source, tmp_path / "resumed", config=config, resume_from=kept[-1])
    assert (resumed.tie_theta, resumed.loss) == (whole.tie_theta, whole.loss)
    assert whole.tie_theta is not None


def test_who_agrees_with_nobody_teaches_less(source: ModelSource, tmp_path: Path) -> None:
    # Four who agree, and one who says the opposite of everything: that one's rankings count nothing.
    rankings = []
    for ranking in make_rankings(16, seed=11):
        for who in ("ann", "bob", "cy", "dee", "contrary"):
            order = ranking.places if who != "contrary" else tuple(3 - (place or 0) for place in ranking.places)
            rankings.append(dataclasses.replace(ranking, annotator=who, places=order))
    found = {
        way: train(rankings, source, tmp_path / way, config=dataclasses.replace(CONFIG, epochs=3, annotators=way)).loss
        for way in ("equal", "agreement")
    }
    assert found["agreement"] < 0.9 * found["equal"]


def test_an_ensembles_score_is_the_mean_of_heads_that_learned_apart(source: ModelSource, tmp_path: Path) -> None:
    rankings = [*make_rankings(200), *make_rankings(40, seed=1, split="validation")]
    config = dataclasses.replace(CONFIG, num_heads=4, epochs=2)
    result = train(rankings, source, tmp_path / "reward", config=config)
    version = ModelSource(source.base, result.folder)
    model, tokenizer = RewardModel.load(version), load_tokenizer(version)
    tasks, _ = encode_rankings(rankings, tokenizer, max_length=64, ties="drop")
    scorer = Scorer(model, pad_id=0, config=config)
    members = scorer.score_members(tasks)
    mean = torch.tensor([value for row in scorer.score_tasks(tasks) for value in row])
    torch.testing.assert_close(members.mean(dim=1), mean, rtol=1e-5, atol=1e-5)
    # Each head has mean 0 over the training answers, so that they can be compared, and each learned.
    assert members[: 4 * 200].mean(dim=0).abs().max() < 1e-4
    for head in range(4):
        scores = members[4 * 200 :, head].view(40, 4).tolist()
        assert measure(rankings[200:], scores)[0] > 0.65
    assert len(result.report["by_doubt"]) == 4
    asked = [(rankings[0].messages, answer) for answer in rankings[0].answers]
    scores, doubts = score_with_doubt(model, tokenizer, asked)
    assert scores == pytest.approx(members[:4].mean(dim=1).tolist(), abs=1e-5)
    assert doubts == pytest.approx(members[:4].std(dim=1, correction=0).tolist(), abs=1e-5)
    assert min(doubts) > 0.01


def test_an_ensemble_goes_on_bit_for_bit(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_heads=3, checkpoint_every=3)
    kept: list[Path] = []
    whole = train(make_rankings(40), source, tmp_path / "whole", config=config, on_checkpoint=kept.append)
    resumed = train(make_rankings(40), source, tmp_path / "resumed", config=config, resume_from=kept[-1])
    for name in ("reward_members.safetensors", "reward_head.safetensors"):
        one, other = load_file(whole.folder / name), load_file(resumed.folder / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_an_ensemble_there_is_no_doubt(source: ModelSource, tmp_path: Path) -> None:
    result = train(make_rankings(8), source, tmp_path / "reward")
    version = ModelSource(source.base, result.folder)
    ranking = make_rankings(1)[0]
    _, doubts = score_with_doubt(
        RewardModel.load(version), load_tokenizer(version), [(ranking.messages, ranking.answers[0])]
    )
    assert doubts == [0.0]
    assert result.report["by_doubt"] == []


# A warm start


def said_of(folder: Path, source: ModelSource, rankings: list[Ranking]) -> list[float]:
    version = ModelSource(source.base, folder)
    asked = [(ranking.messages, answer) for ranking in rankings for answer in ranking.answers]
    return score(RewardModel.load(version), load_tokenizer(version), asked)


@pytest.mark.parametrize(
    ("heads", "lora"), [((1, 1), None), ((1, 1), LORA), ((3, 3), None), ((3, 1), None), ((1, 3), LORA)]
)
def test_a_warm_start_begins_with_the_scores_of_the_earlier_model(
    heads: tuple[int, int], lora: LoraConfig | None, source: ModelSource, tmp_path: Path
) -> None:
    """At a rate of nothing it stays what it was; a fresh model says something else."""
    rankings = make_rankings(24)
    config = dataclasses.replace(CONFIG, lora=lora, num_heads=heads[0])
    before = train(rankings, source, tmp_path / "before", config=config)
    still = dataclasses.replace(config, num_heads=heads[1], learning_rate=1e-12)
    start = ModelSource(source.base, before.folder)
    warm = train(rankings, source, tmp_path / "warm", config=still, start=start)
    fresh = train(rankings, source, tmp_path / "fresh", config=still)
    known = said_of(before.folder, source, rankings)
    assert said_of(warm.folder, source, rankings) == pytest.approx(known, abs=1e-4)
    assert said_of(fresh.folder, source, rankings) != pytest.approx(known, abs=0.05)
    assert (warm.folder / "adapter_model.safetensors").is_file() == (lora is not None)


def test_a_warm_start_goes_on_learning(source: ModelSource, tmp_path: Path) -> None:
    """All of it learns: the head, and what stands below it; heads that began alike part."""
    before = train(make_rankings(24), source, tmp_path / "before")
    start = ModelSource(source.base, before.folder)
    config = dataclasses.replace(CONFIG, num_heads=3)
    after = train(make_rankings(24, seed=2), source, tmp_path / "after", config=config, start=start)
    for name in ("reward_head.safetensors", "model.safetensors"):
        one, other = load_file(before.folder / name), load_file(after.folder / name)
        assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))
    members = load_file(after.folder / "reward_members.safetensors")["weight"]
    assert not torch.equal(members[0], members[1])


def test_a_warm_start_reads_as_often_as_warm_epochs_says(source: ModelSource, tmp_path: Path) -> None:
    rankings = make_rankings(24)
    config = dataclasses.replace(CONFIG, epochs=3, warm_epochs=2)
    before = train(rankings, source, tmp_path / "before", config=config)
    after = train(rankings, source, tmp_path / "after", config=config, start=ModelSource(source.base, before.folder))
    read = [json.loads((made.folder / "manifest.json").read_text())["config"]["epochs"] for made in (before, after)]
    assert read == [3, 2]


def by_policies(*counts: int) -> list[Ranking]:
    """So many rankings of each policy's answers, one policy after another."""
    rankings = make_rankings(sum(counts))
    policies = [f"v{number}" for number, count in enumerate(counts) for _ in range(count)]
    return [
        dataclasses.replace(
            ranking, answers=tuple(dataclasses.replace(answer, policy=policy) for answer in ranking.answers)
        )
        for ranking, policy in zip(rankings, policies, strict=True)
    ]


def test_a_warm_start_may_read_a_share_of_what_is_old_and_goes_on_with_the_same(
    source: ModelSource, tmp_path: Path
) -> None:
    rankings = by_policies(24, 16)
    config = dataclasses.replace(CONFIG, replay_share=0.25)
    before = train(rankings, source, tmp_path / "before", config=config)
    assert before.num_rankings == 40, "a fresh one reads all"
    kept: list[Path] = []
    report = Recorder()
    options: dict[str, Any] = {"config": config, "start": ModelSource(source.base, before.folder)}
    whole = train(rankings, source, tmp_path / "whole", **options, on_checkpoint=kept.append, report=report)
    assert whole.num_rankings == 16 + 6
    assert "22 of 40 ranked tasks" in " ".join(report.lines)
    resumed = train(rankings, source, tmp_path / "resumed", **options, resume_from=kept[-1])
    one, other = (load_file(run.folder / "reward_head.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_may_begin_on_an_earlier_model_with_weights_of_its_own(source: ModelSource, tmp_path: Path) -> None:
    rankings = make_rankings(16)
    before = train(rankings, source, tmp_path / "before")
    config = dataclasses.replace(CONFIG, lora=LORA, learning_rate=1e-12)
    start = ModelSource(source.base, before.folder)
    warm = train(rankings, source, tmp_path / "warm", config=config, start=start)
    known = said_of(before.folder, source, rankings)
    assert said_of(warm.folder, source, rankings) == pytest.approx(known, abs=1e-4)


def test_a_checkpoint_of_another_start_and_a_start_that_is_no_reward_model_are_refused(
    source: ModelSource, tmp_path: Path
) -> None:
    rankings = make_rankings(24)
    kept: list[Path] = []
    before = train(rankings, source, tmp_path / "before", on_checkpoint=kept.append)
    start = ModelSource(source.base, before.folder)
    with pytest.raises(ValueError, match="start"):
        train(rankings, source, tmp_path / "warm", start=start, resume_from=kept[-1])
    with pytest.raises(ValueError, match="is no reward model"):
        train(rankings, source, tmp_path / "warm", start=source)


# --- Text beside rankings


@pytest.mark.parametrize("is_tied", [False, True])
def test_text_has_the_gradient_of_a_language_model_on_the_favourites(is_tied: bool, tmp_path: Path) -> None:
    source = ModelSource(save_tied(tmp_path) if is_tied else save_tiny(tmp_path, spread=0.1))
    rankings = [*make_rankings(3), *make_rankings(2, k=2, seed=3)]
    tasks, _ = encode_rankings(rankings, load_tokenizer(source), max_length=64, ties="drop")
    config = dataclasses.replace(CONFIG, text_coefficient=0.5, tokens_per_forward=16)
    model = RewardModel.from_sft(source, None)
    scorer = Scorer(model, pad_id=0, config=config)
    writer = model.writer(source)
    loss = _accumulate_text(writer, scorer, tasks, config)

    alone: Any = load_causal_lm(source)
    rows = [task.rows[ranking.places.index(0)] for task, ranking in zip(tasks, rankings, strict=True)]
    said = []
    for task, row in zip(tasks, rows, strict=True):
        of_all = alone(torch.tensor([row])).logits[0, :-1].log_softmax(dim=1)
        said += [of_all[place - 1, row[place]] for place in range(task.num_prompt_tokens, len(row))]
    expected = -torch.stack(said).mean()
    (0.5 * expected).backward()

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in alone.base_model.named_parameters():
        torch.testing.assert_close(model.blocks.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert writer.get_output_embeddings().weight.requires_grad is is_tied, "a head of its own stays what it was"


def test_with_text_a_reward_model_still_writes(source: ModelSource, tmp_path: Path) -> None:
    rankings = make_rankings(24)
    lost = {}
    for coefficient in (1e-6, 1.0):
        report = Recorder()
        config = dataclasses.replace(CONFIG, epochs=2, text_coefficient=coefficient)
        train(rankings, source, tmp_path / str(coefficient), config=config, report=report)
        lost[coefficient] = report.points["loss/text"][-1]
    assert lost[1.0] < lost[1e-6] - 0.1


def test_with_text_a_run_goes_on_bit_for_bit(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, text_coefficient=0.5, checkpoint_every=3)
    kept: list[Path] = []
    whole = train(make_rankings(40), source, tmp_path / "whole", config=config, on_checkpoint=kept.append)
    resumed = train(make_rankings(40), source, tmp_path / "resumed", config=config, resume_from=kept[-1])
    one, other = (load_file(run.folder / "reward_head.safetensors") for run in (whole, resumed))
    assert torch.equal(one["weight"], other["weight"])
