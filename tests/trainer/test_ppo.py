"""PPO: against an exact optimum, by hand where a hand can, and what must not matter to it."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.tiny import make_model, make_positional_model, make_tokenizer
from trainer import ppo, ppo_run, shared_prompt
from trainer import rollout as rollouts
from trainer.checkpoints import CheckpointError
from trainer.config import LoraConfig, PPOConfig
from trainer.fitting import learning_parameters
from trainer.models import Policy, RewardModel, ValueModel, load_policy
from trainer.ppo import Trajectory, optimise
from trainer.ppo_guard import Guard, Judgement
from trainer.ppo_learner import Learner, PPOResult, Progress
from trainer.ppo_run import train_ppo
from trainer.pretraining import Passage
from trainer.reporting import RunCancelled, SilentReporter
from trainer.rollout import Question, Rollout, Score, TrainingFailed, make_rollout, walk
from trainer.sampling import Draw, Generated, LocalSampler, Prompt
from trainer.shared_prompt import CannotShare, allow_packing, is_packing
from trainer.weights import ModelSource

TOKENIZER = make_tokenizer(("a", "b", "c"))
EOS, PAD = 1, 0
QUESTIONS = [Question("p1", [3, 4]), Question("p2", [5])]
LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
CPU = torch.device("cpu")


def save_base(folder: Path, seed: int) -> ModelSource:
    make_model(TOKENIZER, seed=seed, spread=0.1).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return ModelSource(folder, alias="tiny")


def save_positional_base(folder: Path, seed: int) -> ModelSource:
    """One that can become the optimum of an enumerable task."""
    make_positional_model(TOKENIZER, seed=seed).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return ModelSource(folder, alias="tiny")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return save_base(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="module")
def reward(base: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("reward-v1")
    RewardModel.from_sft(base, LORA, seed=3).save(folder)
    return replace(base, version=folder)


def make_config(**fields: Any) -> PPOConfig:
    small = {
        "num_episodes": 16,
        "episodes_per_batch": 8,
        "minibatch_size": 4,
        "max_new_tokens": 4,
        "missing_eos_penalty": 0.0,
        "learning_rate": 1e-2,
    }
    return PPOConfig.from_overrides(small | fields).for_model(1000, "cpu")


def make_learner(base: ModelSource, config: PPOConfig, *, is_guarded: bool = False) -> Learner:
    lora = config.lora if isinstance(config.lora, LoraConfig) else None
    value_model = ValueModel.from_reward(RewardModel.from_sft(base, lora, seed=1))
    return Learner.create(load_policy(base, lora=lora, seed=1), value_model, config, is_guarded=is_guarded)


class Diary(SilentReporter):
    """Remembers what was reported, and stops the run when told to."""

    def __init__(self, stop_at_progress: int | None = None) -> None:
        self.points: list[dict[str, float]] = []
        self.lines: list[tuple[str, str]] = []
        self.steps: list[tuple[int, int]] = []
        self.stop_at_progress = stop_at_progress

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.points.append({"step": step, **values})

    def progress(self, step: int, total: int, message: str) -> None:
        self.steps.append((step, total))

    def log(self, level: str, text: str) -> None:
        self.lines.append((level, text))

    def should_stop(self) -> bool:
        return self.stop_at_progress is not None and bool(self.steps) and self.steps[-1][0] >= self.stop_at_progress


def score_by_tokens(table: Tensor, every_tokens: Tensor, every_attention: Tensor) -> Tensor:
    """The sum of table[position, token] over an answer; where it has ended, over padding."""
    scores = []
    for tokens, attention in zip(every_tokens, every_attention, strict=True):
        row = tokens[attention].tolist()
        answer = row[2:] if row[:2] == [3, 4] else row[1:]
        padded = [*answer, *[PAD] * (len(table) - len(answer))]
        scores.append(sum(table[position, token].item() for position, token in enumerate(padded)))
    return torch.tensor(scores)


def run(learner: Learner, config: PPOConfig, *, score: Score | None = None, report: Diary | None = None) -> Diary:
    report = report or Diary()
    table = torch.randn(4, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    optimise(learner, score or partial(score_by_tokens, table), QUESTIONS, TOKENIZER, config, report)
    return report


def weights(learner: Learner) -> dict[str, Tensor]:
    models = {"policy": learner.policy, "value": learner.value_model}
    return {
        f"{key}/{name}": p.detach().clone() for key, model in models.items() for name, p in model.named_parameters()
    }


# --- against the exact optimum


def all_answers(max_new_tokens: int) -> list[list[int]]:
    """Everything that the model can say: words up to an EOS, or cut by length."""
    others = [token for token in range(len(TOKENIZER)) if token != EOS]
    answers = [list(words) for words in itertools.product(others, repeat=max_new_tokens)]
    for length in range(max_new_tokens):
        answers += [[*words, EOS] for words in itertools.product(others, repeat=length)]
    return answers


@torch.no_grad()
def log_law(policy: Policy, question: Question, answers: list[list[int]]) -> Tensor:
    """log p of each answer, exactly."""
    rollout = make_rollout(
        [question] * len(answers), [Generated(answer, [], "stop") for answer in answers], pad_id=PAD, device=CPU
    )
    num_new = rollout.mask_BT.shape[1]
    logprobs = policy.logprobs(rollout.tokens_BL, rollout.attention_BL, num_new=num_new, temperature=1.0)
    return (logprobs * rollout.mask_BT).sum(1).double()


def exact_reward(table: Tensor, question: Question, answers: list[list[int]]) -> Tensor:
    rows = [[*question.tokens, *answer] for answer in answers]
    return torch.cat(
        [score_by_tokens(table, torch.tensor([row]), torch.ones(1, len(row)).bool()) for row in rows]
    ).double()


def objective(law: Tensor, reference: Tensor, reward: Tensor, beta: float) -> float:
    """J = E[r] - beta KL(pi, pi_ref), over every answer."""
    return (law.exp() * (reward - beta * (law - reference))).sum().item()


def test_what_is_missing_to_the_optimum_is_beta_times_the_kl_to_it(base: ModelSource) -> None:
    """J* - J = beta KL(pi, pi*), exactly, for a policy that has learned a little."""
    config = make_config(num_episodes=32, max_new_tokens=3, beta=0.3)
    learner = make_learner(base, config)
    table = torch.randn(3, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    run(learner, config, score=partial(score_by_tokens, table))
    answers = all_answers(3)
    for question in QUESTIONS:
        reward = exact_reward(table, question, answers)
        law = log_law(learner.policy, question, answers)
        with learner.policy.reference():
            reference = log_law(learner.policy, question, answers)
        # The sums are over laws that fp32 logits make: each is normalised in float64.
        law, reference = law.log_softmax(0), reference.log_softmax(0)
        log_z = torch.logsumexp(reference + reward / 0.3, dim=0)
        optimum = reference + reward / 0.3 - log_z
        assert objective(optimum, reference, reward, 0.3) == pytest.approx(0.3 * log_z.item(), abs=1e-10)
        missing = 0.3 * log_z.item() - objective(law, reference, reward, 0.3)
        assert missing == pytest.approx(0.3 * (law.exp() * (law - optimum)).sum().item(), abs=1e-10)
        assert missing > 0.01
        assert (law - reference).abs().max() > 0.01


def share_of_the_optimum(folder: Path, seed: int, beta: float, *, num_rollouts: int = 40) -> float:
    """(J - J_ref) / (J* - J_ref) over every answer: J = E[r] - beta KL; J* = beta log E_ref[exp(r/beta)]."""
    base = save_positional_base(folder, seed)
    config = make_config(
        num_episodes=256 * num_rollouts,
        episodes_per_batch=256,
        minibatch_size=64,
        num_epochs=2,
        max_new_tokens=3,
        beta=beta,
        learning_rate=1e-3,
        value_learning_rate=2e-3,
        tokens_per_forward=8192,
    )
    learner = make_learner(base, config)
    table = torch.randn(3, len(TOKENIZER), generator=torch.Generator().manual_seed(seed))
    run(learner, config, score=partial(score_by_tokens, table))
    answers = all_answers(3)
    gained = possible = 0.0
    for question in QUESTIONS:
        reward = exact_reward(table, question, answers)
        law = log_law(learner.policy, question, answers)
        with learner.policy.reference():
            reference = log_law(learner.policy, question, answers)
        assert reference.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        start = (reference.exp() * reward).sum().item()
        gained += objective(law, reference, reward, beta) - start
        possible += beta * torch.logsumexp(reference + reward / beta, dim=0).item() - start
    return gained / possible


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "num_rollouts"), [(1, 20), pytest.param(3, 40, marks=pytest.mark.soak)])
def test_it_reaches_the_exact_optimum(num_seeds: int, num_rollouts: int, tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(num_seeds)]
    shares = [
        share_of_the_optimum(folder, seed, beta=0.5, num_rollouts=num_rollouts) for seed, folder in enumerate(folders)
    ]
    assert sum(shares) / num_seeds >= 0.95, shares
    assert max(shares) <= 1.0 + 1e-6


# --- rollouts


def test_masks_come_from_lengths_not_from_the_padding_token() -> None:
    answers = [Generated([PAD, 3, EOS], [], "stop"), Generated([4], [], "length")]
    rollout = make_rollout(QUESTIONS, answers, pad_id=PAD, device=CPU)
    assert rollout.tokens_BL.tolist() == [[3, 4, PAD, 3, EOS], [PAD, 5, 4, PAD, PAD]]
    assert rollout.attention_BL.int().tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert rollout.mask_BT.int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert rollout.has_eos_B.tolist() == [True, False]


def test_selected_rows_lose_the_columns_that_are_padding_in_all_of_them() -> None:
    answers = [Generated([PAD, 3, EOS], [], "stop"), Generated([4], [], "length")]
    part = make_rollout(QUESTIONS, answers, pad_id=PAD, device=CPU).select(torch.tensor([1]))
    assert part.tokens_BL.tolist() == [[5, 4]]
    assert part.mask_BT.tolist() == [[True]]


def make_mixed_rollout(learner: Learner, temperature: float) -> tuple[Rollout, list[Generated]]:
    questions = [Question("q", tokens) for tokens in ([3], [3, 4, 5, 3, 4], [5, 5], [4, 3, 3])] * 3
    draws = [Draw(question.tokens, "q", index, seed=1) for index, question in enumerate(questions)]
    drawn = LocalSampler(learner.policy.model, TOKENIZER).draw(
        draws, temperature=temperature, top_p=1.0, max_new_tokens=6
    )
    return make_rollout(questions, drawn, pad_id=PAD, device=CPU), drawn


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_training_forward_says_what_the_sampler_said(base: ModelSource, temperature: float) -> None:
    learner = make_learner(base, make_config())
    rollout, drawn = make_mixed_rollout(learner, temperature)
    with torch.no_grad():
        logprobs = learner.policy.logprobs(
            rollout.tokens_BL, rollout.attention_BL, num_new=rollout.mask_BT.shape[1], temperature=temperature
        )
    sampled = torch.tensor([value for result in drawn for value in result.logprobs])
    torch.testing.assert_close(logprobs[rollout.mask_BT], sampled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_loop_samples_and_trains_at_one_temperature(
    base: ModelSource, lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `optimise` takes for old log-probabilities is what its own sampler drew with."""
    config = make_config(temperature=0.6, num_episodes=8, lora=lora)
    learner = make_learner(base, config)
    drawn: list[Generated] = []
    used: list[Trajectory] = []
    make, update = make_rollout, ppo._update

    def watched_rollout(asked: Any, answers: Any, **rest: Any) -> Rollout:
        drawn.extend(answers)
        return make(asked, answers, **rest)

    def watched_update(own: Learner, trajectory: Trajectory, *rest: Any) -> dict[str, float]:
        used.append(trajectory)
        return update(own, trajectory, *rest)

    monkeypatch.setattr(rollouts, "make_rollout", watched_rollout)
    monkeypatch.setattr(ppo, "_update", watched_update)
    run(learner, config)
    sampled = torch.tensor([value for result in drawn for value in result.logprobs])
    torch.testing.assert_close(used[0].logprobs_BT[used[0].rollout.mask_BT], sampled, atol=1e-4, rtol=0)


def test_a_value_is_that_of_what_came_before_its_token(base: ModelSource) -> None:
    value_model = make_learner(base, make_config()).value_model
    attention = torch.ones(1, 5).bool()
    with torch.no_grad():
        values = value_model(torch.tensor([[3, 4, 5, 3, 4]]), attention, num_new=3)
        others = value_model(torch.tensor([[3, 4, 5, 3, 5]]), attention, num_new=3)
        earlier = value_model(torch.tensor([[3, 4, 5, 4, 4]]), attention, num_new=3)
    assert torch.equal(values, others)
    assert torch.equal(values[:, :2], earlier[:, :2])
    assert not torch.equal(values[:, 2], earlier[:, 2])


@pytest.mark.parametrize("whiten", [True, False])
def test_advantages_are_whitened_over_the_batch_if_the_config_says_so(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch, whiten: bool
) -> None:
    used: list[Trajectory] = []

    def only_keep(learner: Learner, trajectory: Trajectory, *rest: Any) -> dict[str, float]:
        used.append(trajectory)
        return {}

    monkeypatch.setattr(ppo, "_update", only_keep)
    config = make_config(num_episodes=8, whiten_advantages=whiten)
    run(make_learner(base, config), config)
    advantages = used[0].advantages_BT[used[0].rollout.mask_BT]
    is_white = abs(advantages.mean().item()) < 1e-5 and abs(advantages.std(correction=0).item() - 1.0) < 1e-5
    assert is_white == whiten
    unwhitened = (used[0].returns_BT - used[0].values_BT)[used[0].rollout.mask_BT]
    assert torch.allclose(advantages, unwhitened, atol=1e-6) != whiten


def test_every_pass_asks_every_question_once() -> None:
    questions = [Question(str(number), [3]) for number in range(5)]
    asked = [question.prompt_id for question in walk(questions, 0, 15, 4, "pass")]
    assert [sorted(asked[start : start + 5]) for start in (0, 5, 10)] == [["0", "1", "2", "3", "4"]] * 3
    assert asked[:5] != asked[5:10]
    assert [question.prompt_id for question in walk(questions, 7, 4, 4, "pass")] == asked[7:11]


# --- prompts that several samples share


def refuse(transformer: Any) -> None:
    raise CannotShare("a test says so")


def run_shared(base: ModelSource, monkeypatch: pytest.MonkeyPatch, *, is_sharing: bool, **fields: Any) -> Diary:
    if not is_sharing:
        monkeypatch.setattr(ppo, "allow_packing", refuse)
    config = make_config(num_episodes=16, minibatch_size=8, samples_per_prompt=4, **fields)
    learner = make_learner(base, config)
    lora = config.lora if isinstance(config.lora, LoraConfig) else None
    return run(learner, config, score=RewardModel.from_sft(base, lora, seed=1))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("tokens_per_forward", [1, 8192])
def test_a_shared_prompt_gives_what_separate_rows_give(
    base: ModelSource, lora: LoraConfig | None, tokens_per_forward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"lora": lora, "tokens_per_forward": tokens_per_forward, "num_epochs": 2}
    shared = run_shared(base, monkeypatch, is_sharing=True, **fields).points
    apart = run_shared(base, monkeypatch, is_sharing=False, **fields).points
    for name in ("objective/reward", "objective/kl", "objective/length", "objective/entropy", "objective/rlhf_reward"):
        assert [point[name] for point in shared] == pytest.approx([point[name] for point in apart], abs=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradients_of_a_shared_prompt_are_those_of_separate_rows(base: ModelSource, lora: LoraConfig | None) -> None:
    config = make_config(lora=lora)
    learner = make_learner(base, config)
    questions = [Question("q", tokens) for tokens in ([3], [3, 4, 5, 3, 4], [5, 5]) for _ in range(4)]
    draws = [
        Draw(question.tokens, f"q{len(question.tokens)}", index, seed=1) for index, question in enumerate(questions)
    ]
    sampler = LocalSampler(learner.policy.model, TOKENIZER)
    drawn = sampler.draw(draws, temperature=1.0, top_p=1.0, max_new_tokens=6)
    noise = torch.Generator().manual_seed(5)
    found = []
    # Padded rows, packed rows, and packed rows that share their prompts.
    for num_shared in (0, 1, 4):
        if num_shared == 1:
            allow_packing(learner.policy.model)
            allow_packing(learner.value_model.blocks)
        rollout = make_rollout(questions, drawn, pad_id=PAD, device=CPU, num_shared=max(1, num_shared))
        made_up = [torch.randn(rollout.mask_BT.shape, generator=noise.manual_seed(5)) * rollout.mask_BT] * 3
        trajectory = Trajectory(rollout, rollout.sampled_BT + 0.1 * rollout.mask_BT, *made_up)
        metrics = ppo._accumulate(learner, trajectory, torch.arange(12), config)
        of_value = [p.grad.flatten().double() for p in learner.value_model.parameters() if p.grad is not None]
        found.append((policy_gradient(learner), torch.cat(of_value), metrics))
    for other in found[1:]:
        for alone, shared in zip(found[0][:2], other[:2], strict=True):
            assert (alone - shared).norm() <= 1e-5 * alone.norm()
            assert alone.norm() > 1e-3
        assert found[0][2] == pytest.approx(other[2], abs=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_sampler_that_shares_prompts_draws_the_same_answers(num_layers: int) -> None:
    model = make_model(TOKENIZER, seed=3, num_layers=num_layers)
    prompts = [[3], [3, 4, 5, 3, 4], [5, 5]]
    draws = [Draw(prompt, str(prompt), index, seed=1) for prompt in prompts for index in range(4)]
    for size in (3, 8, 16):
        sampler = LocalSampler(model, TOKENIZER, sequences_per_batch=size)
        alone, shared = (
            sampler.draw(draws, temperature=1.0, top_p=1.0, max_new_tokens=6, num_shared=num) for num in (1, 4)
        )
        assert [answer.tokens for answer in alone] == [answer.tokens for answer in shared]
        for one, other in zip(alone, shared, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({tuple(answer.tokens) for answer in shared}) > 4


@pytest.mark.parametrize(("kind", "scale"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.5})])
def test_a_model_that_scales_its_logits_shares_by_its_own_way(kind: str, scale: dict[str, float]) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "initializer_range": 0.3}
    config = AutoConfig.for_model(kind, vocab_size=len(TOKENIZER), **size, **special, **scale)
    model = AutoModelForCausalLM.from_config(config).eval()
    policy = Policy(model, frozen=None, adapter=None, source=ModelSource(Path("none")))
    answers = [Generated(answer, [], "stop") for answer in ([3, 4, EOS], [5], [4, 4], [EOS])]
    rollout = make_rollout([QUESTIONS[0]] * 2 + [QUESTIONS[1]] * 2, answers, pad_id=PAD, device=CPU, num_shared=2)

    def said() -> Tensor:
        rows = rollout.tokens_BL, rollout.attention_BL
        return policy.logprobs(*rows, num_new=3, temperature=0.7, num_shared=2).masked_fill(~rollout.mask_BT, 0.0)

    apart = said()
    allow_packing(model)
    assert is_packing(model.base_model)
    torch.testing.assert_close(said(), apart, rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_share_computes_padded_rows_and_says_why(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = shared_prompt.packed_logits
    monkeypatch.setattr(shared_prompt, "packed_logits", lambda *row: 2 * logits(*row))
    config = make_config(num_episodes=8)
    learner = make_learner(base, config)
    said = run(learner, config).lines
    assert any("padded row" in line and "differs from separate rows" in line for _, line in said)
    assert not is_packing(learner.policy.model.base_model)
    assert is_packing(learner.value_model.blocks)


def test_samples_of_a_prompt_stay_together() -> None:
    config = make_config(num_episodes=8, samples_per_prompt=2, num_epochs=2)
    rollout = make_rollout(
        [Question("q", [3, 4])] * 8, [Generated([3], [0.0], "stop")] * 8, pad_id=PAD, device=CPU, num_shared=2
    )
    trajectory = Trajectory(rollout, *[torch.zeros(8, 1)] * 4)
    seen = [rows.tolist() for rows in ppo._minibatches(trajectory, config, 0)]
    assert len(seen) == 4
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(8))
    assert all(rows[0] % 2 == 0 and rows[1] == rows[0] + 1 for part in seen for rows in (part[:2], part[2:]))


@pytest.mark.parametrize("field", ["minibatch_size", "num_episodes"])
def test_what_does_not_hold_whole_prompts_is_refused(field: str) -> None:
    sizes = {"minibatch_size": 8, "episodes_per_batch": 8, "num_episodes": 16}
    with pytest.raises(ValueError, match=f"{field}: must be a multiple of samples_per_prompt"):
        make_config(**{**sizes, "samples_per_prompt": 4, field: sizes[field] // 8, "episodes_per_batch": 8})


# --- where old log-probabilities come from


def test_the_sampler_s_log_probabilities_serve_once_they_were_seen_to_be_exact(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Trajectory] = []
    update = ppo._update

    def watched(own: Learner, trajectory: Trajectory, *rest: Any) -> dict[str, float]:
        used.append(trajectory)
        return update(own, trajectory, *rest)

    monkeypatch.setattr(ppo, "_update", watched)
    for error, is_exact in ((0.0, True), (1e-3, False)):
        used.clear()

        def with_error(*args: Any, error: float = error, **rest: Any) -> Rollout:
            rollout = make_rollout(*args, **rest)
            return replace(rollout, sampled_BT=rollout.sampled_BT + error * rollout.mask_BT)

        monkeypatch.setattr(rollouts, "make_rollout", with_error)
        config = make_config()
        learner = make_learner(base, config)
        run(learner, config)
        assert learner.progress.is_sampler_exact is is_exact
        assert [t.logprobs_BT is t.rollout.sampled_BT for t in used] == [False, is_exact]
        torch.testing.assert_close(used[1].logprobs_BT, used[1].rollout.sampled_BT, atol=2e-3, rtol=0)


# --- updates


@pytest.mark.parametrize("lora", [None, LORA])
def test_before_the_first_step_the_ratio_is_1(base: ModelSource, lora: LoraConfig | None) -> None:
    config = make_config(num_episodes=8, minibatch_size=8, lora=lora)
    (point,) = run(make_learner(base, config), config).points
    assert point["ppo/policy/ratio_error"] <= 1e-5
    assert point["ppo/policy/approxkl"] <= 1e-5
    assert point["ppo/policy/clipfrac"] == 0.0
    assert point["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_a_policy_that_is_not_the_one_that_sampled_is_noticed(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    learner = make_learner(base, config)
    logprobs = learner.policy.logprobs

    def at_another_temperature(*args: Any, temperature: float, **rest: Any) -> Tensor:
        return logprobs(*args, temperature=temperature if not torch.is_grad_enabled() else 1.1, **rest)

    monkeypatch.setattr(learner.policy, "logprobs", at_another_temperature)
    with pytest.raises(AssertionError, match="before the first step"):
        run(learner, config)


def test_a_step_does_not_depend_on_micro_batches(base: ModelSource) -> None:
    results = []
    for tokens_per_forward in (1, 20, 8192):
        config = make_config(num_episodes=8, minibatch_size=8, tokens_per_forward=tokens_per_forward)
        learner = make_learner(base, config)
        (point,) = run(learner, config).points
        results.append(
            [point[f"ppo/{name}"] for name in ("policy/loss", "value/loss", "policy/grad_norm", "value/grad_norm")]
        )
    torch.testing.assert_close(torch.tensor(results[0]), torch.tensor(results[2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(results[1]), torch.tensor(results[2]), atol=1e-5, rtol=1e-5)


def test_with_an_adapter_only_the_last_block_and_the_value_head_learn(base: ModelSource) -> None:
    config = make_config(lora=LORA)
    learner = make_learner(base, config)
    before = weights(learner)
    run(learner, config)
    moved = {name for name, tensor in weights(learner).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(("lora_" in name and ".layers.1." in name) or name.startswith("value/head.") for name in moved)


def test_an_answer_cut_by_length_pays_the_penalty(base: ModelSource) -> None:
    # Scores 0 and no KL penalty: what is left of the reward is -3 for each answer without EOS.
    config = make_config(missing_eos_penalty=3.0, beta=0.0, num_episodes=8)
    (point,) = run(make_learner(base, config), config, score=lambda tokens, attention: torch.zeros(len(tokens))).points
    assert 0.0 < point["objective/eos"] < 1.0
    assert point["objective/rlhf_reward"] == pytest.approx(-3.0 * (1.0 - point["objective/eos"]), abs=1e-6)


def test_the_rate_rises_over_a_tenth_of_the_run_at_most(base: ModelSource) -> None:
    config = make_config(num_episodes=8 * 40, warmup_iterations=10)  # 40 rollouts: 4 of them warm up
    learner = make_learner(base, config)
    rates = []
    for iteration in range(6):
        learner.progress.num_iterations = iteration
        ppo._set_rates(learner, config)
        rates.append(learner.policy_optimizer.param_groups[0]["lr"] / 1e-2)
    assert rates == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])


def test_an_adaptive_beta_follows_the_summed_kl() -> None:
    config = make_config(target_kl=6.0, kl_horizon=100)
    assert ppo._next_beta(0.5, 6.6, 10, config) == pytest.approx(0.5 * (1 + 0.1 * 10 / 100))  # error 0.1
    assert ppo._next_beta(0.5, 60.0, 10, config) == pytest.approx(0.5 * (1 + 0.2 * 10 / 100))  # cut off at 0.2
    assert ppo._next_beta(0.5, 0.0, 10, config) == pytest.approx(0.5 * (1 - 0.2 * 10 / 100))
    assert ppo._next_beta(0.5, 60.0, 10, make_config()) == 0.5


def test_it_stops_when_the_kl_is_too_high(base: ModelSource) -> None:
    config = make_config(num_episodes=80, learning_rate=0.3, kl_stop=1.0, beta=0.0)
    learner = make_learner(base, config)
    report = run(learner, config)
    assert learner.progress.num_episodes < 80
    assert learner.progress.last_kl is not None
    assert learner.progress.last_kl > 1.0
    assert report.lines[-1][1].startswith("Stopped: KL")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_stops_the_run_before_it_reaches_a_weight(base: ModelSource, bad: float) -> None:
    config = make_config()
    learner = make_learner(base, config)
    before = weights(learner)
    with pytest.raises(TrainingFailed, match="the reward model's score is NaN or infinite"):
        run(learner, config, score=lambda tokens, attention: torch.full((len(tokens),), bad))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_a_gradient_that_is_no_number_is_not_applied(base: ModelSource) -> None:
    config = make_config()
    learner = make_learner(base, config)
    before = weights(learner)
    for parameter in (*learner.policy.parameters(), *learner.value_model.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    next(learner.value_model.parameters()).grad.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(TrainingFailed, match="the gradient of the value model is NaN"):
        ppo._step(learner, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


# --- pretraining text (PPO-ptx)

A, B, C = 3, 4, 5


def make_trajectory(learner: Learner) -> Trajectory:
    """A rollout with made-up advantages and returns, and old log-probabilities that are not the policy's."""
    rollout, drawn = make_mixed_rollout(learner, 1.0)
    noise = torch.Generator().manual_seed(5)
    made_up = [torch.randn(rollout.mask_BT.shape, generator=noise) * rollout.mask_BT for _ in range(3)]
    logprobs = torch.zeros(rollout.mask_BT.shape)
    for row, answer in enumerate(drawn):
        logprobs[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs) + 0.1
    return Trajectory(rollout, logprobs, *made_up)


def policy_gradient(learner: Learner) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in learner.policy.parameters() if p.grad is not None])


def test_a_minibatch_has_the_gradient_of_the_paper_s_loss_and_of_nothing_else(base: ModelSource) -> None:
    """The clipped loss of 1707.06347, eq. 7, in one forward pass: the KL, which the reward has, is no loss."""
    config = make_config(beta=0.5, tokens_per_forward=8)
    learner = make_learner(base, config)
    trajectory = make_trajectory(learner)
    rollout, advantages = trajectory.rollout, trajectory.advantages_BT
    ppo._accumulate(learner, trajectory, torch.arange(12), config)
    found = policy_gradient(learner)
    learner.policy_optimizer.zero_grad()
    logprobs = learner.policy.logprobs(
        rollout.tokens_BL, rollout.attention_BL, num_new=rollout.mask_BT.shape[1], temperature=config.temperature
    )
    ratio = (logprobs - trajectory.logprobs_BT).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    (-surrogate[rollout.mask_BT].mean()).backward()
    expected = policy_gradient(learner)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert expected.norm() > 0


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_gradient_is_that_of_ppo_plus_gamma_times_that_of_the_text(
    base: ModelSource, lora: LoraConfig | None
) -> None:
    config = make_config(lora=lora, ptx_coefficient=27.8, tokens_per_forward=8)
    learner = make_learner(base, config)
    trajectory, rows = make_trajectory(learner), torch.arange(12)
    passages = [Passage([A, B, C, A, EOS], 1), Passage([C, C, B, EOS], 2), Passage([B, A], 1)]
    ppo._accumulate(learner, trajectory, rows, config)
    of_ppo = policy_gradient(learner)
    learner.policy_optimizer.zero_grad()
    # By hand: every passage alone, the mean over all 4 + 2 + 1 learned tokens.
    total = torch.zeros(())
    for passage in passages:
        laws = learner.policy.model(torch.tensor([passage.tokens])).logits[0].log_softmax(-1)
        total = total - sum(laws[at - 1, passage.tokens[at]] for at in range(passage.num_given, len(passage.tokens)))
    (total / 7).backward()
    of_text = policy_gradient(learner)

    metrics = ppo._accumulate(learner, trajectory, rows, config)
    metrics |= ppo._accumulate_pretraining(learner.policy, passages, config)
    expected = of_ppo + 27.8 * of_text
    assert (policy_gradient(learner) - expected).norm() <= 1e-6 * expected.norm()
    assert metrics["ppo/ptx/loss"] == pytest.approx(total.item() / 7, rel=1e-6)
    assert of_ppo.norm() > 1e-3 * of_text.norm() > 0


def lm_loss(policy: Policy, texts: list[list[int]]) -> float:
    with torch.no_grad():
        losses = [policy.model(torch.tensor([text]), labels=torch.tensor([text])).loss for text in texts]
    return torch.stack(losses).mean().item()


def test_after_ppo_with_text_the_policy_writes_held_out_text_better(base: ModelSource) -> None:
    """The text counts a, b, c, a …; the reward wants only "a". What is held out begins elsewhere."""
    texts = [[A, B, C] * 4 + [A, EOS], [B, C, A] * 3 + [B, C, EOS]]
    held_out = [[C, A, B] * 5 + [EOS]]
    losses = {}
    for coefficient in (0.0, 1.0):
        config = make_config(num_episodes=64, ptx_coefficient=coefficient)
        learner = make_learner(base, config)
        before = lm_loss(learner.policy, held_out)
        passages = [Passage(text, 1) for text in texts]

        optimise(learner, count(A), QUESTIONS, TOKENIZER, config, Diary(), passages=passages)
        losses[coefficient] = lm_loss(learner.policy, held_out)
    assert losses[1.0] < before
    assert losses[1.0] < losses[0.0] - 0.1


def test_each_minibatch_reads_its_share_of_the_texts_and_every_text_in_turn(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    accumulate = ppo._accumulate_pretraining

    def watched(policy: Policy, passages: list[Passage], config: PPOConfig) -> dict[str, float]:
        read.append([passage.tokens[0] for passage in passages])
        return accumulate(policy, passages, config)

    monkeypatch.setattr(ppo, "_accumulate_pretraining", watched)
    config = make_config(ptx_coefficient=1.0, ptx_examples_per_episode=2, num_epochs=2)
    passages = [Passage([token, A], 1) for token in range(len(TOKENIZER))] * 4  # 24 passages
    optimise(
        make_learner(base, config),
        lambda t, a: t[:, 0].float(),
        QUESTIONS,
        TOKENIZER,
        config,
        Diary(),
        passages=passages,
    )
    # 2 rollouts x 2 epochs x 2 minibatches of 4 episodes, two texts for each of them: 64 texts, 2 whole passes first.
    assert [len(texts) for texts in read] == [8] * 8
    in_order = [token for texts in read for token in texts]
    assert sorted(in_order[:24]) == sorted(in_order[24:48]) == sorted(passage.tokens[0] for passage in passages)
    assert in_order[:24] != in_order[24:48]


# --- averaged weights


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_average_is_that_of_the_weights_after_each_step(
    base: ModelSource, lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(ema_decay=0.9, lora=lora)
    learner = make_learner(base, config)
    assert learner.average is not None
    seen = [[p.detach().clone() for p in learning_parameters(learner.policy)]]
    step = ppo._step

    def watched(own: Learner, *rest: Any) -> dict[str, float]:
        norms = step(own, *rest)
        seen.append([p.detach().clone() for p in learning_parameters(own.policy)])
        return norms

    monkeypatch.setattr(ppo, "_step", watched)
    run(learner, config)
    assert len(seen) == 5  # the start, and 2 rollouts of 2 minibatches
    for number, averaged in enumerate(learner.average):
        expected = seen[0][number]
        for later in seen[1:]:
            expected = 0.9 * expected + 0.1 * later[number]
        torch.testing.assert_close(averaged.detach(), expected, atol=1e-6, rtol=0)
    assert (lora is None) == (len(learner.average) > 14)  # an adapter has a pair for each of one block's 7 layers


def test_the_saved_version_is_the_average_and_says_so(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    fields = {"lora": LORA.as_json()}
    result = train(base, reward, tmp_path / "still", ema_decay=1.0, **fields)
    assert result.is_average
    assert json.loads((tmp_path / "still" / "manifest.json").read_text())["result"]["is_average"]
    still = load_policy(replace(base, version=tmp_path / "still"), lora=None, reference=base)
    with torch.no_grad(), still.reference():
        reference = log_law(still, QUESTIONS[0], all_answers(1))
    # With a decay of 1 the average stays where it began: there the policy is the reference, whatever it learned.
    assert torch.equal(log_law(still, QUESTIONS[0], all_answers(1)), reference)
    assert not train(base, reward, tmp_path / "last", **fields).is_average


# --- guards


def test_a_guard_remembers_its_best_and_counts_exploited_rollouts_in_a_row() -> None:
    guard = Judgement(first_score=0.0, best_score=0.0, training_score=0.0, num_episodes=0)
    assert guard.hear(1.0, 1.0, 8)
    assert not guard.hear(0.9, 2.0, 16)
    assert guard.num_exploited == 1
    assert not guard.hear(0.9, 0.5, 24)  # the training score fell, too: nothing is exploited
    assert guard.num_exploited == 0
    assert not guard.hear(0.9, 1.1, 32)
    assert not guard.hear(0.8, 1.2, 40)
    assert (guard.num_exploited, guard.best_score, guard.num_episodes, guard.first_score) == (2, 1.0, 8, 0.0)
    assert guard.hear(1.5, 1.5, 48)
    assert (guard.num_exploited, guard.num_episodes) == (0, 48)


def count(token: int) -> Score:
    return lambda tokens, attention: ((tokens == token) & attention).sum(1).float()


def test_a_run_stops_when_the_guard_sees_that_the_reward_is_exploited(base: ModelSource) -> None:
    config = make_config(num_episodes=800, guard_patience=2, guard_answers=16, beta=0.0)
    guard = Guard(lambda tokens, attention: -count(A)(tokens, attention), QUESTIONS)
    learner = make_learner(base, config, is_guarded=True)
    before = weights(learner)
    report = Diary()
    optimise(learner, count(A), QUESTIONS, TOKENIZER, config, report, guard=guard)
    assert learner.progress.stopped_by == "guard"
    assert learner.progress.num_episodes < 100
    assert report.lines[-1][0] == "warning"
    assert "the policy exploits its reward model" in report.lines[-1][1]
    scores = [point["guard/score"] for point in report.points]
    assert report.points[0]["step"] == 0
    assert [point["guard/training_score"] for point in report.points] == [-score for score in scores]
    judged = learner.progress.guard
    assert judged is not None
    assert judged.best_score == max(scores)
    assert judged.num_episodes == 8 * scores.index(max(scores))
    learner.settle()
    kept = {name: tensor for name, tensor in weights(learner).items() if name.startswith("policy/")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items()) == (judged.num_episodes == 0)


def rise(number: Iterator[int], tokens: Tensor, attention: Tensor) -> Tensor:
    return torch.full((len(tokens),), float(next(number)))


def test_a_guard_that_agrees_keeps_the_last_weights_and_changes_nothing_of_the_training(base: ModelSource) -> None:
    config = make_config(num_episodes=48)
    found = {}
    for is_guarded in (False, True):
        learner = make_learner(base, config, is_guarded=is_guarded)
        guard = Guard(partial(rise, itertools.count()), QUESTIONS)
        optimise(learner, count(A), QUESTIONS, TOKENIZER, config, Diary(), guard=guard if is_guarded else None)
        learner.settle()
        found[is_guarded] = weights(learner)
    assert all(torch.equal(tensor, found[True][name]) for name, tensor in found[False].items())


def test_the_version_of_a_guarded_run_holds_the_weights_of_the_guard_s_best_moment(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    report = Diary()
    result = train(
        base, reward, tmp_path / "v2", report=report, guard=reward, guard_prompts=PROMPTS[:1], num_episodes=24
    )
    assert result.guard is not None
    scores = [point["guard/score"] for point in report.points]
    assert len(scores) == 4
    assert result.guard.best_score == max(scores)
    assert result.guard.num_episodes == 8 * scores.index(max(scores))
    saved = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert saved["result"]["guard"]["num_episodes"] == result.guard.num_episodes
    # The weights that are kept say again what the guard heard then.
    config = make_config()
    policy = load_policy(replace(base, version=tmp_path / "v2"), lora=None)
    judge = RewardModel.load(reward)
    questions, _ = ppo_run._encode(PROMPTS[:1], tokenizer=TOKENIZER, policy=policy, config=config, report=report)
    learner = Learner.create(policy, ValueModel.from_reward(judge), config, is_guarded=True)
    again = ppo._consult(Guard(judge, questions), learner, judge, LocalSampler(policy.model, TOKENIZER), config, report)
    assert again["guard/score"] == pytest.approx(max(scores), abs=1e-5)


def test_a_checkpoint_keeps_the_average_and_the_guard_s_best(base: ModelSource, tmp_path: Path) -> None:
    config = make_config(ema_decay=0.5)
    kept, found = (make_learner(base, config, is_guarded=True) for _ in range(2))
    run(kept, config)
    kept.remember()
    kept.save(tmp_path / "checkpoint", {})
    run(kept, config)  # what comes later is not in it
    remembered = [tensor.detach().clone() for tensor in kept.best or []]
    found.restore(tmp_path / "checkpoint", {})
    for models in (found.best, found.average):
        assert all(torch.equal(a, b) for a, b in zip(models or [], remembered, strict=True))


def test_prompts_for_a_guard_that_is_not_there_are_refused(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="name its reward model"):
        train(base, reward, tmp_path / "v2", guard_prompts=PROMPTS)


# --- a whole run

PROMPTS = [Prompt("p1", [{"role": "user", "content": "a b"}]), Prompt("p2", [{"role": "user", "content": "c"}])]
TOO_LONG = Prompt("p3", [{"role": "user", "content": "a " * 70}])


def train(
    base: ModelSource,
    reward: ModelSource,
    out: Path,
    *,
    report: Diary | None = None,
    prompts: list[Prompt] = PROMPTS,
    policy: ModelSource | None = None,
    resume_from: Path | None = None,
    ptx_texts: Sequence[Mapping[str, Any]] = (),
    guard: ModelSource | None = None,
    guard_prompts: Sequence[Prompt] = (),
    **fields: Any,
) -> PPOResult:
    return train_ppo(
        prompts,
        sft=base,
        policy=policy or base,
        reward=reward,
        config=make_config(**fields),
        out=out,
        report=report or Diary(),
        resume_from=resume_from,
        ptx_texts=ptx_texts,
        guard=guard,
        guard_prompts=guard_prompts,
    )


def test_a_run_writes_a_version_and_reports(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    report = Diary()
    result = train(base, reward, tmp_path / "v2", prompts=[*PROMPTS, TOO_LONG], report=report, lora=LORA.as_json())
    assert result.num_episodes == 16
    assert [row["prompt_id"] for row in result.refused] == ["p3"]
    assert "context of 64" in result.refused[0]["reason"]
    assert set(result.as_json()) == {
        "num_episodes",
        "reward",
        "kl",
        "seconds",
        "refused",
        "is_average",
        "guard",
        "stopped_by",
    }
    assert result.as_json()["guard"] is None
    assert {"objective/reward", "objective/kl", "objective/entropy", "objective/length"} <= set(report.points[0])
    assert {
        "ppo/policy/loss",
        "ppo/policy/clipfrac",
        "ppo/policy/approxkl",
        "ppo/value/loss",
        "ppo/beta",
        "sample/tokens_per_second",
    } <= set(report.points[0])
    assert [point["step"] for point in report.points] == [8, 16]
    assert report.steps[-1] == (32, 32)
    assert [step for step, _ in report.steps] == sorted(step for step, _ in report.steps)
    assert any(text.startswith("best of 8: score") for _, text in report.lines)
    manifest = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert manifest["kind"] == "ppo"
    assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = load_policy(replace(base, version=tmp_path / "v2"), lora=None, reference=base)
    with torch.no_grad(), loaded.reference():
        reference = log_law(loaded, QUESTIONS[0], all_answers(1))
    assert not torch.equal(log_law(loaded, QUESTIONS[0], all_answers(1)), reference)


def test_the_reference_is_the_sft_model_not_the_policy_that_the_run_began_with(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    train(base, reward, tmp_path / "v2", lora=LORA.as_json(), learning_rate=0.1)
    report = Diary()
    train(base, reward, tmp_path / "v3", policy=replace(base, version=tmp_path / "v2"), report=report, num_episodes=8)
    assert abs(report.points[0]["objective/kl"]) > 1e-3


@pytest.mark.parametrize("lora", [None, LORA.as_json()])
def test_a_killed_run_that_goes_on_ends_as_if_it_had_not_been_killed(
    base: ModelSource, reward: ModelSource, tmp_path: Path, lora: Any
) -> None:
    fields = {"num_episodes": 32, "lora": lora, "target_kl": 1.0, "num_epochs": 2}
    if lora:
        fields |= {"ema_decay": 0.9, "guard": reward, "guard_answers": 4, "guard_patience": 9}
        fields |= {"ptx_coefficient": 2.0, "ptx_texts": [{"text": "a b c a b"}, {"text": "c c"}, {"text": "b a"}]}
    whole = train(base, reward, tmp_path / "whole", **fields)
    with pytest.raises(RunCancelled):
        train(base, reward, tmp_path / "killed", report=Diary(stop_at_progress=44), **fields)  # in the third update
    assert not (tmp_path / "killed").exists()
    torch.manual_seed(99)
    resumed = train(base, reward, tmp_path / "resumed", resume_from=tmp_path / "killed.checkpoint", **fields)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "resumed" / name)
    assert set(expected) == set(found)
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)


def test_another_run_s_checkpoint_is_refused(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    train(base, reward, tmp_path / "one")
    with pytest.raises(CheckpointError, match="config"):
        train(base, reward, tmp_path / "two", resume_from=tmp_path / "one.checkpoint", beta=0.7)


def test_a_reward_model_that_says_nan_leaves_no_version(base: ModelSource, tmp_path: Path) -> None:
    broken = RewardModel.from_sft(base, LORA, seed=3)
    with torch.no_grad():
        broken.head.weight.fill_(math.nan)
    (tmp_path / "reward").mkdir()
    broken.save(tmp_path / "reward")
    with pytest.raises(TrainingFailed, match="NaN or infinite"):
        train(base, replace(base, version=tmp_path / "reward"), tmp_path / "v2")
    assert not (tmp_path / "v2").exists()
    assert not (tmp_path / "v2.checkpoint").exists()


def test_a_run_without_a_prompt_that_fits_is_refused(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no prompt to learn on: 1 prompts, of them 1 over"):
        train(base, reward, tmp_path / "v2", prompts=[TOO_LONG])


def test_texts_without_a_weight_and_a_weight_without_texts_are_refused(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="set ptx_coefficient"):
        train(base, reward, tmp_path / "v2", ptx_texts=[{"text": "a b"}])
    with pytest.raises(ValueError, match="no text is given"):
        train(base, reward, tmp_path / "v2", ptx_coefficient=27.8)
    with pytest.raises(ValueError, match=r"nothing to learn in the 1 texts.*Text 1 holds nothing"):
        train(base, reward, tmp_path / "v2", ptx_coefficient=27.8, ptx_texts=[{"text": ""}])


def test_other_texts_are_another_run(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    train(base, reward, tmp_path / "one", ptx_coefficient=1.0, ptx_texts=[{"text": "a b"}])
    with pytest.raises(CheckpointError, match="ptx_texts_sha256"):
        train(
            base,
            reward,
            tmp_path / "two",
            resume_from=tmp_path / "one.checkpoint",
            ptx_coefficient=1.0,
            ptx_texts=[{"text": "a c"}],
        )


def test_progress_survives_json() -> None:
    progress = Progress(beta=0.3, num_iterations=2, num_episodes=16, first_reward=0.1, last_reward=0.2, last_kl=0.4)
    assert Progress.from_json(json.loads(json.dumps(asdict(progress)))) == progress
    judged = replace(progress, guard=Judgement(0.1, 0.2, 0.3, 8, 1), stopped_by="guard")
    assert Progress.from_json(json.loads(json.dumps(asdict(judged)))) == judged
