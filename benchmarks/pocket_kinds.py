"""What can the pocket model do, before anybody has ranked anything? By language and kind of prompt.

    python benchmarks/pocket_kinds.py [--quick] [--pocket FOLDER] [--json FILE]

It answers held-out prompts of each kind, up to 24 of them (--quick: 2), eight times each, at the temperature of
`rankloop simulate`. Printed is the share of the answers that are right (the whole content that was asked for, about the
right subject) and of those that are good (right, polite, whole, and not said twice: `build.classify`). What the model
is hardly ever right on, no ranking can teach it, and the best of many guesses is luck.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.own_answers import Drawn, draw_answers
from trainer.pocket.build import build_pocket, classify
from trainer.pocket.utility import judge
from trainer.pocket.words import PHRASEBOOKS, Kind
from trainer.pocket.world import Request, draw_request_of, is_held_out
from trainer.sampling import LocalSampler, Prompt
from trainer.simulate import SAMPLING, TEMPERATURE
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

NUM_PROMPTS, FEW_PROMPTS = 24, 2
NUM_ANSWERS = 8
NUM_DRAWS = 3_000
"""In which all held-out prompts of a small kind turn up."""
SEED = 17


@dataclass(frozen=True)
class Share:
    """Of the answers to one kind of prompt in one language."""

    language: str
    kind: str
    num_prompts: int
    right: float
    good: float


def held_out(language: str, kind: Kind, num: int) -> list[Request]:
    """Different prompts of a kind that the pocket model was not trained on; fewer where there are fewer."""
    rng = random.Random(f"{SEED} {language} {kind}")
    drawn = (draw_request_of(language, kind, rng) for _ in range(NUM_DRAWS))
    found = {request.prompt: request for request in drawn if is_held_out(request.prompt)}
    return list(found.values())[:num]


def shares(source: ModelSource, num: int) -> Iterator[Share]:
    """What the model can do, kind by kind."""
    sampler = LocalSampler(load_causal_lm(source), load_tokenizer(source))
    for language in PHRASEBOOKS:
        for kind in Kind:
            prompts = [
                Prompt(request.prompt, [{"role": "user", "content": request.prompt}])
                for request in held_out(language, kind, num)
            ]
            drawn = draw_answers(
                sampler,
                prompts,
                n=NUM_ANSWERS,
                temperature=TEMPERATURE,
                max_new_tokens=int(SAMPLING["max_new_tokens"]),
                seed=SEED,
            )
            yield share_of(language, kind, drawn)


def share_of(language: str, kind: Kind, drawn: Sequence[Drawn]) -> Share:
    """The shares of a kind's answers."""
    found = [judge(item.prompt.id, answer.text) for item in drawn for answer in item.answers]
    right = fmean(min(judgement.content, judgement.topic) > 0.99 for judgement in found)
    good = fmean(classify(judgement) == "good" for judgement in found)
    return Share(language, str(kind), len(drawn), round(right, 4), round(good, 4))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pocket", type=Path, default=Path(".data/models/pocket"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Build the model if it is missing, ask it, and print the table."""
    options = parse_options()
    build_pocket(options.pocket, progress=lambda *_: None)
    found: list[dict[str, Any]] = []
    print("               prompts   right    good")
    for share in shares(ModelSource(options.pocket), FEW_PROMPTS if options.quick else NUM_PROMPTS):
        print(
            f"{share.language} {share.kind:<12}{share.num_prompts:>7}{share.right:>8.0%}{share.good:>8.0%}", flush=True
        )
        found.append(asdict(share))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
