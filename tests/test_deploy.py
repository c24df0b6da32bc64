"""The compose file and deploy/: valid, nobody is root, no default secret, and proxies pass on what counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from app.main import PAGES
from tests.app.matrix import routes

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
VERSION = "1.34"


def checked_as_compose(path: Path) -> Result:
    """What the Compose specification's schema says of a file. check-jsonschema has a copy: nothing is fetched."""
    # Here: jsonschema takes 2.5 s to import, in every process that collects tests.
    from check_jsonschema import main

    return CliRunner().invoke(main, ["--builtin-schema", "vendor.compose-spec", str(path)])


def test_the_compose_file_is_valid() -> None:
    answer = checked_as_compose(COMPOSE)
    assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize(
    ("right", "wrong", "word"),
    [
        ("restart: unless-stopped", "restrat: unless-stopped", "restrat"),
        ("condition: service_healthy", "condition: service_well", "service_well"),
    ],
)
def test_an_error_in_the_compose_file_is_found(tmp_path: Path, right: str, wrong: str, word: str) -> None:
    planted = tmp_path / "docker-compose.yml"
    text = COMPOSE.read_text()
    assert right in text
    planted.write_text(text.replace(right, wrong, 1))
    answer = checked_as_compose(planted)
    assert answer.exit_code == 1
    assert word in answer.stdout


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        yield from ((f"{path.name} {part['kind']}", part) for part in yaml.safe_load_all(path.read_text()))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, part in documents():
        spec = part.get("spec", {})
        spec = spec.get("jobTemplate", part).get("spec", spec)
        if "template" in spec:
            yield name, spec["template"]["spec"]


@pytest.mark.filterwarnings("ignore")
def test_manifests_are_valid() -> None:
    import kubernetes_validate

    checked = [kubernetes_validate.validate(part, VERSION, strict=True) for _, part in documents() if part]
    assert len(checked) == 12
    wrong = dict(documents())["web.yaml Deployment"] | {"spec": {"replicas": "two"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_nobody_is_root_and_nothing_is_written_but_data() -> None:
    seen = 0
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == 10001, name
        assert not pod["automountServiceAccountToken"], name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert not context["allowPrivilegeEscalation"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            seen += 1
    assert seen == 4


def test_secrets_come_from_secrets() -> None:
    for name, pod in pods():
        for entry in pod["containers"][0]["env"]:
            is_secret = re.search("TOKEN|PASSWORD|SECRET|KEY|DATABASE_URL", entry["name"])
            assert ("valueFrom" in entry) == bool(is_secret), f"{name} {entry['name']}"


def test_probes_ask_what_there_is_and_the_database_is_no_sign_of_life() -> None:
    [container] = dict(pods())["web.yaml Deployment"]["containers"]
    paths = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    assert {f"GET {path}" for path in paths.values()} <= set(routes([module.router for module in PAGES]))


def test_proxies_pass_on_the_host_and_replace_the_visitors_address() -> None:
    nginx = (DEPLOY / "nginx.conf").read_text()
    for line in (
        "Host $http_host;",
        "X-Forwarded-For $remote_addr;",
        "X-Forwarded-Proto $scheme;",
        "location = /metrics",
    ):
        assert line in nginx
    assert nginx.count("{") == nginx.count("}")
    assert "respond /metrics 404" in (DEPLOY / "Caddyfile").read_text()
