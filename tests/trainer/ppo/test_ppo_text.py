"""PPO-ptx: what the text adds to the gradient, and to what the policy writes."""

from pathlib import Path

import pytest
import torch

from tests.trainer.ppo.tools import (
    EOS,
    LORA,
    QUESTIONS,
    TOKENIZER,
    A,
    B,
    C,
    Diary,
    count,
    make_config,
    make_learner,
    make_trajectory,
    policy_gradient,
    train,
)
from trainer import ppo
from trainer.checkpoints import CheckpointError
from trainer.config import LoraConfig, PPOConfig
from trainer.models import Policy
from trainer.ppo import optimise
from trainer.ppo_text import AlignmentTax, accumulate_pretraining, hold_out
from trainer.pretraining import Passage
from trainer.weights import ModelSource


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
    metrics |= accumulate_pretraining(learner.policy, passages, config)
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

    def watched(policy: Policy, passages: list[Passage], config: PPOConfig) -> dict[str, float]:
        read.append([passage.tokens[0] for passage in passages])
        return accumulate_pretraining(policy, passages, config)

    monkeypatch.setattr(ppo, "accumulate_pretraining", watched)
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


# The alignment tax


HELD_OUT = [Passage([C, B, C, EOS], 1), Passage([B, C], 1)]


def token_loss(policy: Policy, passages: list[Passage]) -> float:
    """By hand: every passage alone, the mean over all learned tokens."""
    with torch.no_grad():
        laws = [policy.model(torch.tensor([passage.tokens])).logits[0].log_softmax(-1) for passage in passages]
    losses = [
        -law[at - 1, passage.tokens[at]].item()
        for law, passage in zip(laws, passages, strict=True)
        for at in range(passage.num_given, len(passage.tokens))
    ]
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_tax_is_the_loss_on_text_beside_that_of_the_sft_model(base: ModelSource, lora: LoraConfig | None) -> None:
    config = make_config(lora=lora, tax_texts=2, tokens_per_forward=4)
    learner, diary = make_learner(base, config), Diary()
    before = token_loss(learner.policy, HELD_OUT)
    optimise(learner, count(A), QUESTIONS, TOKENIZER, config, diary, tax=AlignmentTax(HELD_OUT))
    first, *_, last = [point for point in diary.points if "tax/loss" in point]
    assert first["tax/loss"] == pytest.approx(before, rel=1e-6)
    assert last["tax/loss"] == pytest.approx(token_loss(learner.policy, HELD_OUT), rel=1e-6)
    assert last["tax/loss"] > before + 1e-3, "who learns to say only a writes this text worse"
    assert {point["tax/reference_loss"] for point in (first, last)} == {first["tax/loss"]}


def test_the_tax_is_taken_before_the_first_rollout_now_and_then_and_after_the_last(base: ModelSource) -> None:
    config = make_config(num_episodes=40, tax_texts=2, tax_every=2)
    diary = Diary()
    optimise(make_learner(base, config), count(A), QUESTIONS, TOKENIZER, config, diary, tax=AlignmentTax(HELD_OUT))
    assert [point["step"] for point in diary.points if "tax/loss" in point] == [0, 16, 32, 40]


def test_text_that_measures_is_not_learned(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    texts = [{"text": "a b c"}, {"text": "b b"}, {"text": "c a"}, {"text": "c c c c"}]
    config = make_config(ptx_coefficient=1.0, tax_texts=3)
    learned, held = hold_out(texts, config)
    assert len(held) == 2, "at most half"
    assert sorted(row["text"] for row in [*learned, *held]) == sorted(row["text"] for row in texts)
    assert {row["text"] for row in hold_out(texts[::-1], config)[1]} == {row["text"] for row in held}
    assert hold_out(texts, make_config(tax_texts=3))[0] == [], "without PPO-ptx none is learned"
    assert hold_out(texts, make_config(ptx_coefficient=1.0)) == (texts, [])

    diary = Diary()
    train(base, reward, tmp_path / "v2", ptx_texts=texts, tax_texts=3, report=diary, liked_answers=())
    assert "tax/loss" in diary.points[0]
    assert not any("ppo/ptx/loss" in point for point in diary.points)


def test_a_tax_without_text_is_refused(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tax_texts is set, and no text is given"):
        train(base, reward, tmp_path / "v2", tax_texts=3)
    with pytest.raises(ValueError, match="the only text can't be learned and held out"):
        train(base, reward, tmp_path / "v2", tax_texts=3, ptx_coefficient=1.0, ptx_texts=[{"text": "a b"}])
    with pytest.raises(ValueError, match=r"nothing to learn in the 1 texts for tax_texts: Text 1 holds nothing"):
        train(base, reward, tmp_path / "v2", tax_texts=3, ptx_texts=[{"text": ""}])
