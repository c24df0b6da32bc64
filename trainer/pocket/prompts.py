"""The pocket world's prompts for loops, as lines that `rankloop import` takes. None of them is in the training text.

`app/demo/pocket_prompts.jsonl` was written by `python -m trainer.pocket.prompts app/demo/pocket_prompts.jsonl`.
"""

import json
import sys
from pathlib import Path

from trainer.pocket.world import Request, held_out_requests

NUM_PROMPTS = 300
SEED = 2026


def write_prompts(path: Path, *, num_prompts: int = NUM_PROMPTS, seed: int = SEED) -> None:
    """Write prompts as JSONL, the same ones for the same numbers."""
    requests = held_out_requests(num_prompts, seed)
    path.write_text("".join(_line(request) for request in requests), encoding="utf-8")


def _line(request: Request) -> str:
    prompt = {
        "messages": [{"role": "user", "content": request.prompt}],
        "kind": "plain",
        "language": request.language,
        "source": "rankloop pocket world",
    }
    return json.dumps(prompt, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_prompts(Path(sys.argv[1]))
