"""Sampling: the law that tokens are drawn from, what decides a text, what is cut, redrawn, refused."""

import math
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from tests.trainer.tiny import make_model, make_tokenizer
from trainer.sampling import (
    Draw,
    Generated,
    LocalSampler,
    Prompt,
    SampledPrompt,
    SamplingSettings,
    can_share_cache,
    decode,
    drawn_law,
    encode_prompt,
    generate,
    pick_tokens,
)

TOKENIZER = make_tokenizer()


def ask(prompt_id: str, text: str) -> Prompt:
    return Prompt(prompt_id, [{"role": "user", "content": text}])


PROMPTS = [ask("p1", "a b c d a b"), ask("p2", "a"), ask("p3", "b c d"), ask("p4", "d d"), ask("p5", "c a")]


def sample(
    prompts: list[Prompt], *, k: int = 4, sequences_per_batch: int = 16, **settings: float
) -> list[SampledPrompt]:
    sampler = LocalSampler(make_model(TOKENIZER), TOKENIZER, sequences_per_batch=sequences_per_batch)
    return list(sampler.sample(prompts, k=k, settings=SamplingSettings.from_json({"max_new_tokens": 8, **settings})))


def texts(results: list[SampledPrompt]) -> dict[str, list[str]]:
    return {result.prompt_id: [completion.text for completion in result.completions] for result in results}


def test_temperature_divides_the_logits() -> None:
    # Logits log 4 and 0 at temperature 2: sqrt(4) : 1, so 2/3 and 1/3.
    law = drawn_law(torch.tensor([[math.log(4.0), 0.0]]), temperature=2.0, top_p=1.0)
    torch.testing.assert_close(law.exp(), torch.tensor([[2 / 3, 1 / 3]]))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # 0.5 + 0.3 is the first sum that reaches 0.6; of these two, 0.5 / 0.8 and 0.3 / 0.8.
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    torch.testing.assert_close(
        drawn_law(logits, temperature=1.0, top_p=0.6).exp(), torch.tensor([[0.0, 0.625, 0.0, 0.375]])
    )


def test_tokens_are_picked_where_the_cumulative_probability_passes_the_uniform() -> None:
    law = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(5, 4)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.9999], dtype=torch.float64)
    assert pick_tokens(law, uniform).tolist() == [0, 0, 2, 2, 3]


def test_draws_follow_the_law() -> None:
    # 4,000 first tokens against the model's own probabilities: each within four standard deviations.
    model, prompt = make_model(TOKENIZER), [3, 4, 5]
    draws = [Draw(prompt, "p", index, seed=1) for index in range(4000)]
    first = torch.tensor([result.tokens[0] for result in run(model, draws, temperature=1.5, max_new_tokens=1)])
    with torch.no_grad():
        law = (model(torch.tensor([prompt])).logits[0, -1] / 1.5).softmax(-1)
    share = torch.bincount(first, minlength=len(law)) / 4000
    assert ((share - law).abs() <= 4 * (law * (1 - law) / 4000).sqrt() + 1e-3).all()


def run(
    model: PreTrainedModel, draws: list[Draw], *, temperature: float = 1.0, max_new_tokens: int = 8
) -> list[Generated]:
    return generate(
        model,
        draws,
        temperature=temperature,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_ids=[TOKENIZER.eos_token_id],
        pad_id=TOKENIZER.pad_token_id,
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_the_sampler_s_log_probabilities_equal_recomputed_ones(temperature: float) -> None:
    model = make_model(TOKENIZER)
    draws = [Draw([3, 4, 5, 6, 3][: 1 + index % 5], "p", index, seed=1) for index in range(10)]
    for draw, result in zip(draws, run(model, draws, temperature=temperature), strict=True):
        row = torch.tensor([[*draw.prompt_tokens, *result.tokens]])
        with torch.no_grad():
            logprobs = (model(row).logits[0, :-1] / temperature).log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
        recomputed = logprobs[len(draw.prompt_tokens) - 1 :]
        torch.testing.assert_close(recomputed, torch.tensor(result.logprobs), atol=1e-4, rtol=0)


def test_the_model_s_own_generation_defaults_play_no_part() -> None:
    plain, opinionated = make_model(TOKENIZER), make_model(TOKENIZER)
    opinionated.generation_config.repetition_penalty = 5.0
    opinionated.generation_config.suppress_tokens = [3, 4]
    draws = [Draw([3, 4, 5], "p", index, seed=1) for index in range(8)]
    assert run(opinionated, draws) == run(plain, draws)
    assert opinionated.generation_config.repetition_penalty == 5.0


def test_a_text_does_not_depend_on_its_batch() -> None:
    together = texts(sample(PROMPTS, sequences_per_batch=100))
    assert texts(sample(PROMPTS, sequences_per_batch=1)) == together
    assert texts(sample(PROMPTS[::-1], sequences_per_batch=8)) == together


@pytest.mark.parametrize(("num_parameters", "size"), [(640_000, 512), (30_000_000, 128), (135_000_000, 16)])
def test_a_small_model_draws_more_at_once(num_parameters: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(TOKENIZER)
    monkeypatch.setattr(model, "num_parameters", lambda: num_parameters)
    assert LocalSampler(model, TOKENIZER).sequences_per_batch == size


def test_a_resumed_run_draws_the_rest_of_the_same_texts() -> None:
    whole = texts(sample(PROMPTS))
    assert texts(sample(PROMPTS[2:])) == {prompt_id: whole[prompt_id] for prompt_id in ("p3", "p4", "p5")}


def watched(sampler: LocalSampler, num_answers: int, **given: Any) -> tuple[list[Generated], list[tuple[int, int]]]:
    """Answers to a prompt of twenty tokens, and the (rows, columns) of every forward pass that they took."""
    draws = [Draw([3, 4] * 10, "p", index, 1) for index in range(num_answers)]
    options = {"temperature": 1.0, "top_p": 1.0, **given}
    sampler.draw(draws[:2], **options | {"num_shared": 2})  # whether the model can share is tried once, before
    shapes: list[tuple[int, int]] = []
    hook = sampler.model.base_model.register_forward_pre_hook(
        lambda _, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    found = sampler.draw(draws, **options)
    hook.remove()
    return found, shapes


def test_a_prompt_is_computed_once_for_its_answers() -> None:
    sampler = LocalSampler(make_model(TOKENIZER), TOKENIZER)
    assert watched(sampler, 6, max_new_tokens=1)[1] == [(6, 20)]
    # All of the prompt but its last token once, and that one for each answer.
    assert watched(sampler, 6, max_new_tokens=1, num_shared=6)[1] == [(1, 19), (6, 1)]


def test_answers_that_share_a_prompt_fit_their_batch() -> None:
    sampler = LocalSampler(make_model(TOKENIZER), TOKENIZER, sequences_per_batch=8)
    shared, shapes = watched(sampler, 12, max_new_tokens=4, num_shared=12)
    # Of twelve, the largest part that divides them and is no more than eight.
    assert {rows for rows, _ in shapes} == {1, 6}
    alone, _ = watched(sampler, 12, max_new_tokens=4)
    assert [answer.tokens for answer in shared] == [answer.tokens for answer in alone]


@pytest.mark.parametrize("num_shared", [1, 24])
def test_answers_that_have_ended_leave_the_batch(num_shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = LocalSampler(make_model(TOKENIZER), TOKENIZER, sequences_per_batch=24)
    monkeypatch.setattr("trainer.sampling.TOKENS_PER_STRETCH", 100)
    together, _ = watched(sampler, 24, max_new_tokens=20, num_shared=num_shared)
    monkeypatch.setattr("trainer.sampling.TOKENS_PER_STRETCH", 3)
    found, shapes = watched(sampler, 24, max_new_tokens=20, num_shared=num_shared)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in together]
    for one, other in zip(found, together, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    # Of the steps after the first three, each holds the answers that had not ended when its stretch began.
    lengths = [len(answer.tokens) for answer in found]
    steps = [rows for rows, columns in shapes if columns == 1][-(max(lengths) - 1) :]
    assert steps == [sum(length > (step + 1) // 3 * 3 for length in lengths) for step in range(max(lengths) - 1)]
    assert min(steps) < 24


def test_the_k_answers_of_a_sample_share_their_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    draw = LocalSampler.draw

    def watch(self: LocalSampler, draws: list[Draw], **options: Any) -> list[Generated]:
        asked.append(options["num_shared"])
        return draw(self, draws, **options)

    monkeypatch.setattr(LocalSampler, "draw", watch)
    sample(PROMPTS[:2], k=3)
    assert asked[0] == 3


def test_a_model_with_a_running_state_shares_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(**size, pad_token_id=0, eos_token_id=1, bos_token_id=None)).eval()
    assert can_share_cache(make_model(TOKENIZER))
    assert not can_share_cache(mamba)
    monkeypatch.setattr("trainer.sampling.TOKENS_PER_STRETCH", 1)  # and its answers stay in their batch to its end
    draws = [Draw([3, 4, 5], "p", index, seed=1) for index in range(4)]
    drawn = LocalSampler(mamba, TOKENIZER).draw(draws, temperature=1.0, top_p=1.0, max_new_tokens=4, num_shared=4)
    assert drawn == run(mamba, draws, max_new_tokens=4)


def test_another_seed_gives_other_texts() -> None:
    assert texts(sample(PROMPTS, seed=1)) != texts(sample(PROMPTS, seed=2))


def test_the_shortest_prompt_comes_first_and_alone() -> None:
    sampler = LocalSampler(make_model(TOKENIZER), TOKENIZER)
    results = sampler.sample(PROMPTS, k=4, settings=SamplingSettings(max_new_tokens=8))
    assert next(results).prompt_id == "p2"
    num_tokens = sampler.num_tokens
    assert num_tokens <= 4 * 8 * 4  # one prompt's four completions, each drawn at most four times
    assert sampler.tokens_per_second > 0
    assert len(list(results)) == 4


def test_what_follows_the_first_eos_is_cut() -> None:
    for result in run(make_model(TOKENIZER), [Draw([3, 4], "p", index, seed=5) for index in range(40)]):
        assert result.tokens.count(TOKENIZER.eos_token_id) == (1 if result.finish_reason == "stop" else 0)
        assert (result.tokens[-1] == TOKENIZER.eos_token_id) == (result.finish_reason == "stop")
        assert (
            len(result.tokens)
            == len(result.logprobs)
            == (8 if result.finish_reason == "length" else len(result.tokens))
        )


def test_a_completion_remembers_how_it_was_made() -> None:
    (result,) = sample(PROMPTS[:1], k=3, seed=40, temperature=0.9)
    first = result.completions[0]
    assert first.to_json() == {
        "prompt_id": "p1",
        "index": 0,
        "text": first.text,
        "seed": first.seed,
        "finish_reason": first.finish_reason,
        "num_tokens": first.num_tokens,
        "sampling": {"temperature": 0.9, "top_p": 1.0, "max_new_tokens": 8, "seed": 40},
    }
    assert [completion.index for completion in result.completions] == [0, 1, 2]


def test_a_duplicate_is_drawn_again_with_the_next_seed() -> None:
    # One token from a law of nine: among nine completions some repeat at first, and remember another seed.
    (result,) = sample([ask("p", "a b")], k=5, seed=3, max_new_tokens=1, temperature=2.0)
    seeds = [completion.seed for completion in result.completions]
    assert seeds[0] == 3
    assert max(seeds) > 3
    redrawn = result.completions[seeds.index(max(seeds))]
    tokens = encode_prompt(TOKENIZER, ask("p", "a b").messages)
    again = run(
        make_model(TOKENIZER), [Draw(tokens, "p", redrawn.index, redrawn.seed)], temperature=2.0, max_new_tokens=1
    )
    assert decode(TOKENIZER, again[0].tokens) == redrawn.text


def test_duplicates_that_persist_are_counted() -> None:
    (result,) = sample([ask("p", "a b")], k=4, temperature=0.01)
    assert len(result.completions) == 4
    assert result.num_duplicates == 3
    assert [completion.seed for completion in result.completions] == [17, 20, 20, 20]


def test_empty_completions_are_duplicates_of_each_other_only() -> None:
    model = make_model(TOKENIZER)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    sampler = LocalSampler(model, TOKENIZER)
    (result,) = sampler.sample([ask("p", "a")], k=9, settings=SamplingSettings(max_new_tokens=6))
    assert [completion.text for completion in result.completions].count("") <= 1
    assert result.num_duplicates == 0


def test_a_prompt_over_the_context_is_refused_by_name_and_the_others_go_on() -> None:
    long = ask("too-long", "a " * 60)
    refused, answered = sample([PROMPTS[1], long])
    assert refused.completions == []
    assert refused.refusal == (
        "Prompt too-long has 62 tokens; with up to 8 new ones that is over the model's context of 64. "
        "Shorten the prompt, or lower max_new_tokens."
    )
    assert answered.prompt_id == "p2"
    assert answered.refusal is None


def test_a_prompt_that_just_fits_is_answered() -> None:
    (result,) = sample([ask("p", " ".join("a" * 54))], k=2)
    assert result.refusal is None
    assert len(result.completions) == 2


def test_the_model_s_chat_template_is_used() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    tokens = encode_prompt(tokenizer, [{"role": "user", "content": "a b"}])
    assert tokenizer.convert_ids_to_tokens(tokens) == ["<unk>", "a", "b", "Assistant:"]


def test_without_a_template_turns_are_lines() -> None:
    tokens = encode_prompt(TOKENIZER, [{"role": "user", "content": "a b"}])
    assert TOKENIZER.convert_ids_to_tokens(tokens) == ["User:", "a", "b", "Assistant:"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_k": 3}, "top_k"),
    ],
)
def test_bad_settings_are_refused_by_name(fields: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"sampling\.{name}"):
        SamplingSettings.from_json(fields)


def test_a_model_that_says_nan_is_not_sampled() -> None:
    """Whatever would be drawn from it would look like an answer."""
    model = make_model(TOKENIZER)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="can't be sampled: a probability of the next token is NaN"):
        list(LocalSampler(model, TOKENIZER).sample(PROMPTS[:1], k=1, settings=SamplingSettings(max_new_tokens=8)))
