"""The OpenAPI document says what the API does: thousands of made-up requests, hostile ones among them, and no answer
that it does not name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.accounts.models import Scope
from tests.contract.conftest import House, work_off

ROOT = Path(__file__).resolve().parents[2]

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.real_commits
@pytest.mark.parametrize("examples_per_operation", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_no_request_gets_an_answer_that_the_document_does_not_name(
    house: House, tmp_path: Path, examples_per_operation: int
) -> None:
    config = tmp_path / "schemathesis.toml"
    # Every scope, so that a worker's operations are reached, too.
    token = house.admin.create_token(name="fuzz", scopes=list(Scope))["token"]
    gaps = "".join(f'"{name}" = "{id_}"\n' for name, id_ in things(house).items())
    # Of the methods that a path does not know, one that changes something and one that nothing knows.
    config.write_text(f'[parameters]\n{gaps}[phases.coverage]\nunexpected-methods = ["POST", "TRACE"]\n')
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)),
        *("run", f"{house.server.url}/api/v1/openapi.json", "--header", f"Authorization: Bearer {token}"),
        *("--checks", CHECKS, "--continue-on-failure", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(examples_per_operation), "--generation-deterministic", "--no-color"),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.contract.openapi_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | hooks, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def things(house: House) -> dict[str, str]:
    """One of each thing by the name of its gap in a path, so that requests come past \"there is none\"."""
    project = house.make_project()
    house.import_prompts(project, 3)
    house.admin.start_sampling(project["id"])
    work_off(house)
    lease = house.admin.next_task(project["id"])
    assert lease is not None
    order = [[card["id"]] for card in lease["completions"]]
    ranking = house.admin.submit_ranking(lease["lease_id"], {"order": order})
    held = house.admin.next_task(project["id"])
    assert held is not None
    dataset = house.admin.create_dataset(project_id=project["id"])
    run = house.admin.start_run(project["id"], "dpo")
    with house.worker_client() as worker:
        claim = worker.claim_run("fuzz", ["dpo"])
    assert claim is not None
    return {
        "project_id": project["id"],
        "run_id": run["id"],
        "Rankloop-Fence": str(claim["fence"]),
        "version_id": house.admin.list_versions(project["id"])[0]["id"],
        "ranking_id": ranking["id"],
        "lease_id": held["lease_id"],
        "dataset_id": dataset["id"],
    }
