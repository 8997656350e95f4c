"""The files under deploy/ are valid and agree with the service."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from latentwire.protocol import ErrorBody
from latentwire_service.settings import Settings
from latentwire_service.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[1]
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy/kubernetes/latentwire.yaml").read_text())
)
BY_KIND = {manifest["kind"]: manifest for manifest in MANIFESTS}
POD = BY_KIND["Deployment"]["spec"]["template"]["spec"]
(SERVE,) = POD["containers"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("manifest", MANIFESTS, ids=BY_KIND)
def test_a_manifest_is_valid_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_are_complete() -> None:
    assert set(BY_KIND) == {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }


def test_the_pod_has_no_privileges() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert SERVE["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False


def test_the_pods_grace_period_exceeds_the_drain_timeout() -> None:
    drain_s = Settings.model_fields["drain_timeout"].default
    assert POD["terminationGracePeriodSeconds"] > drain_s + 5 + 5
    grace = COMPOSE["services"]["replica-0"]["stop_grace_period"]
    assert int(grace.removesuffix("m")) * 60 > drain_s + 5


def test_flags_and_variables_exist() -> None:
    flags = {word[2:].replace("-", "_") for word in SERVE["args"] if word.startswith("--")}
    variables = {variable["name"] for variable in SERVE["env"]} - {"HOME"}
    names = {name.removeprefix("LATENTWIRE_").lower() for name in variables}
    assert flags
    assert names
    assert flags | names <= set(Settings.model_fields)


def metrics_of(text: str) -> set[str]:
    return {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in re.findall(r"latentwire_[a-z0-9_]+", text)
    }


def test_dashboard_and_autoscaler_use_metrics_that_exist() -> None:
    shown = Metrics().render().decode()
    known = set(re.findall(r"^# TYPE (\S+)", shown, re.MULTILINE))
    dashboard = (ROOT / "deploy/grafana/latentwire.json").read_text()
    queries = " ".join(
        target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]
    )
    (metric,) = BY_KIND["HorizontalPodAutoscaler"]["spec"]["metrics"]
    used = metrics_of(queries) | {metric["pods"]["metric"]["name"]}
    assert used <= known
    assert len(used) > 8


def test_prometheus_scrapes_the_replicas_of_the_compose_file() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    aliases = COMPOSE["services"]["replica-0"]["networks"]["default"]["aliases"]
    assert job["dns_sd_configs"][0]["names"] == aliases


def titles_in(document: Any) -> dict[str, str]:
    """Return the titles of an OpenAPI document's error bodies, by code."""
    found: dict[str, str] = {}
    values = document.values() if isinstance(document, dict) else document
    for value in values:
        if isinstance(value, dict) and isinstance(value.get("code"), str):
            found[value["code"]] = value["title"]
        elif isinstance(value, dict | list):
            found |= titles_in(value)
    return found


def test_the_gateways_own_errors_are_worded_like_the_services() -> None:
    gateway = (ROOT / "deploy/gateway/nginx.conf").read_text()
    bodies = re.findall(r"return (\d+) '(\{.*\})'", gateway)
    assert len(bodies) == 4
    titles = titles_in(json.loads((ROOT / "docs/openapi.json").read_text()))
    for status, text in bodies:
        body = ErrorBody.model_validate_json(text)
        assert body.status == int(status)
        # The document has no example of an unknown path.
        assert body.code == "not-found" or body.title == titles[body.code]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_container_can_write_to_its_own_file_system(name: str) -> None:
    spec = COMPOSE["services"][name]
    assert spec["read_only"] is True
    assert any(str(entry).startswith("/tmp") for entry in spec["tmpfs"])


def test_service_links_set_no_setting() -> None:
    """Without this, a Service named latentwire sets LATENTWIRE_PORT to an address."""
    assert POD["enableServiceLinks"] is False
