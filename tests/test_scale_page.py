"""What docs/scale.md shows can be read by the programs it is for, as far as that can be checked without them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rankloop.cli import build

PAGE = (Path(__file__).resolve().parents[1] / "docs/scale.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def find(manifest: Any, *path: str | int) -> Any:
    for part in path:
        manifest = manifest[part]
    return manifest


def test_the_manifests_are_yaml_with_what_their_kinds_require() -> None:
    deployment, task = (yaml.safe_load(block) for block in blocks("yaml"))
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    labels = find(deployment, "spec", "template", "metadata", "labels")
    assert find(deployment, "spec", "selector", "matchLabels") == labels
    container = find(deployment, "spec", "template", "spec", "containers", 0)
    volumes = {volume["name"] for volume in find(deployment, "spec", "template", "spec", "volumes")}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert {variable["name"] for variable in container["env"]} == {"RANKLOOP_URL", "RANKLOOP_TOKEN"}
    assert {"name", "resources", "setup", "run"} <= task.keys()
    assert task["secrets"] == {"RANKLOOP_TOKEN": None}


@pytest.mark.parametrize("script", blocks("sh"))
def test_the_scripts_are_shell(script: str) -> None:
    shell = shutil.which("sh")
    assert shell
    done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commands_and_their_options_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    called = [line.split("rankloop ", 1)[1] for line in lines if re.search(r"rankloop (train|worker) ", line)]
    assert len(called) == 5
    for command in (line.split() for line in called):
        path = command[: 2 if command[0] == "train" else 1]
        shown = CliRunner().invoke(build(), [*path, "--help"], env={"COLUMNS": "200"}).output
        for option in (word for word in command if word.startswith("--")):
            assert option in shown, (path, option)


def test_the_tables_follow_from_their_formulae() -> None:
    sizes = (1.24e9, 8.03e9, 70.6e9)
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    for formula, factor in (("16 P", 16), ("4 P", 4), ("40 P", 40), ("12 P", 12), ("16 P / 8", 2), ("4 P / 8", 0.5)):
        row = next(row for row in rows if len(row) == 5 and row[1].split(",")[0] == formula)
        given = [float(cell.replace(",", "")) for cell in row[2:]]
        assert given == pytest.approx([factor * size / 1e9 for size in sizes], rel=0.04)
    learned = next(row for row in rows if row[0].startswith("learned tokens/s"))
    given = [float(cell.replace(",", "")) for cell in learned[1:]]
    assert given == pytest.approx([0.35 * 989e12 / 6 / size for size in sizes], rel=0.01)
