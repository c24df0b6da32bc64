"""The arrows of docs/design.md, section 2: who may import whom. Read from the source; nothing needs to be installed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = [
    "accounts",
    "projects",
    "runs",
    "registry",
    "prompts",
    "corpora",
    "tasks",
    "rankings",
    "writing",
    "quality",
    "datasets",
    "loop",
    "webhooks",
]
# Inside a domain, a file imports only from those before it. `guards` are the dependencies that pages and API share.
LAYERS = ["models", "service", "guards", "schemas", "pages", "api"]
WEB = {"fastapi", "starlette", "jinja2"}
# Files of a domain that meet the web, beside `…_pages`; all others are verbs and what verbs need.
MEET_THE_WEB = {"guards", "pages", "api"}
MEET_THE_WEB_TOO = {"app.accounts.quick", "app.datasets.exporting", "app.projects.forms"}
TORCH = {"torch", "transformers", "peft", "safetensors", "accelerate", "gguf"}
# These put the domains together: the app itself, its commands, migrations and what `rankloop up` does.
ASSEMBLY = {"app.main", "app.cli", "app.tables", "app.migrate", "app.reach", "app.supervisor", "app.serve", "app.demo"}
ASSEMBLY |= {"app.operations"}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Every module that a source names in an import, relative ones resolved. `from a import b` names a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, base]) if base else ".".join(above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.split(".", 1)[0]


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def domain_and_layer(module: str) -> tuple[str | None, str | None]:
    """`app.tasks.service` is in the domain tasks, layer service; `app.db` is in none."""
    parts = module.split(".")
    if parts[0] != "app" or len(parts) < 2 or parts[1] not in DOMAINS:
        return None, None
    return parts[1], parts[2] if len(parts) > 2 and parts[2] in LAYERS else None


def meets_the_web(module: str) -> bool:
    """Whether a file of a domain answers requests."""
    name = module.rpartition(".")[2]
    return name in MEET_THE_WEB or name.endswith("_pages") or module in MEET_THE_WEB_TOO


def broken_arrows(module: str, imported: str) -> Iterator[str]:
    """What is wrong with this import, if anything."""
    if top(module) == "app" and top(imported) in TORCH | {"trainer"}:
        yield f"{module} imports {imported}: the app knows neither the trainer nor torch"
    if top(module) == "app" and top(imported) == "numpy" and not is_within(module, {"app.quality"}):
        yield f"{module} imports {imported}: numbers are crunched in `quality`, which every start pays for once"
    if top(module) == "trainer":
        yield from broken_trainer_arrows(module, imported)
    if top(module) == "app":
        yield from broken_domain_arrows(module, imported)
    if top(module) == "rankloop" and top(imported) in TORCH | {"app", "trainer", "sqlalchemy", "psycopg", "fastapi"}:
        yield f"{module} imports {imported}: what app and trainer share knows neither"


def broken_trainer_arrows(module: str, imported: str) -> Iterator[str]:
    forbidden = {"app", "sqlalchemy", "jinja2", "psycopg", "alembic"}
    forbidden |= set() if is_within(module, {"trainer.reward_server"}) else {"fastapi", "starlette"}
    if top(imported) in forbidden:
        yield f"{module} imports {imported}: the trainer meets the app in JSON only"
    if module == "trainer.losses" and top(imported) not in {"torch", *sys.stdlib_module_names}:
        yield f"{module} imports {imported}: losses are made of torch only"
    if module == "trainer.preferences" and top(imported) in TORCH:
        yield f"{module} imports {imported}: preferences need no torch"


def broken_domain_arrows(module: str, imported: str) -> Iterator[str]:
    domain, layer = domain_and_layer(module)
    target, target_layer = domain_and_layer(imported)
    if domain is None:
        if target is not None and not is_within(module, ASSEMBLY):
            yield f"{module} imports {imported}: what all share knows no domain"
        return
    if is_within(imported, ASSEMBLY):
        yield f"{module} imports {imported}: a domain does not know what puts it together"
    if target is not None and DOMAINS.index(target) > DOMAINS.index(domain):
        yield f"{module} imports {imported}: {target} comes after {domain}"
    is_page = target is not None and target_layer != "guards" and meets_the_web(imported)
    if (top(imported) in WEB or imported == "app.web" or is_page) and not meets_the_web(module):
        yield f"{module} imports {imported}: only pages, API and guards know of the web"
    if domain == target and layer and target_layer and LAYERS.index(target_layer) > LAYERS.index(layer):
        yield f"{module} imports {imported}: {target_layer} comes after {layer}"


def all_broken_arrows(path: Path) -> list[str]:
    module = module_name(path)
    imports = imported_modules(path.read_text(), module, is_package=path.name == "__init__.py")
    return sorted({wrong for imported in imports for wrong in broken_arrows(module, imported)})


@pytest.mark.parametrize("path", [*python_files("app"), *python_files("trainer"), *python_files("rankloop")], ids=str)
def test_every_import_follows_the_arrows(path: Path) -> None:
    assert all_broken_arrows(path) == []


def test_every_domain_of_the_design_is_in_its_order() -> None:
    lines = (ROOT / "docs/design.md").read_text().split("| domain | owns |", 1)[1].splitlines()
    rows = [line for line in lines[2:] if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[: len(DOMAINS)]] == DOMAINS


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("app.tasks.service", "import torch.nn"),
        ("app.main", "from trainer import losses"),
        ("app.rankings.service", "import numpy as np"),
        ("trainer.worker", "from app.db import Base"),
        ("trainer.worker", "import sqlalchemy.orm"),
        ("trainer.client", "from fastapi import FastAPI"),
        ("trainer.losses", "from trainer.config import PPOConfig"),
        ("trainer.preferences", "def read():\n    import torch"),
        ("app.prompts.service", "from app.tasks import service as tasks"),
        ("app.prompts.service", "from ..tasks.models import Task"),
        ("app.prompts.service", "from app import loop"),
        ("app.runs.service", "from fastapi import HTTPException"),
        ("app.runs.models", "from app.web import render"),
        ("app.runs.models", "from app.runs import service"),
        ("app.runs.service", "from app.runs.pages import router"),
        ("app.accounts.tokens", "from starlette.requests import Request"),
        ("app.loop.ending", "from app.loop.comparison_pages import router"),
        ("app.runs.service", "from app.main import create_app"),
        ("app.db", "from app.accounts.models import User"),
        ("rankloop.logs", "import psycopg"),
    ],
)
def test_a_wrong_import_is_seen(module: str, line: str) -> None:
    assert [wrong for imported in imported_modules(line, module) for wrong in broken_arrows(module, imported)]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("trainer.reward_server", "from fastapi import FastAPI"),
        ("trainer.losses", "from torch.nn import functional as F"),
        ("app.tasks.service", "from app.prompts.service import get_prompt"),
        ("app.tasks.pages", "from app.tasks import service\nfrom app.web import render"),
        ("app.main", "from app.loop import pages"),
    ],
)
def test_a_right_import_is_let_through(module: str, line: str) -> None:
    assert not [wrong for imported in imported_modules(line, module) for wrong in broken_arrows(module, imported)]


def test_nothing_runs_at_import() -> None:
    """At the top level of a module stand definitions and assignments: no loops, and no bare calls."""
    found = [
        f"{module_name(path)}:{node.lineno}"
        for path in [*python_files("app"), *python_files("trainer"), *python_files("rankloop")]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.For | ast.While | ast.With)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await))
    ]
    assert found == []
