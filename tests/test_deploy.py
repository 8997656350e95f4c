"""The files under deploy/ are valid and agree with the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
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
BY_KIND = {manifest["kind"]: manifest for manifest in reversed(MANIFESTS)}
NAMES = [f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in MANIFESTS]
MONITORING: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest
    for manifest in yaml.safe_load_all((ROOT / "deploy/kubernetes/monitoring.yaml").read_text())
}
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
PROMTOOL = shutil.which("promtool")
POD = BY_KIND["Deployment"]["spec"]["template"]["spec"]
(SERVE,) = POD["containers"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("manifest", MANIFESTS, ids=NAMES)
def test_a_manifest_is_valid_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_are_complete() -> None:
    assert NAMES == [
        "Deployment latentwire",
        "PersistentVolumeClaim latentwire-models",
        "Service latentwire",
        "Service latentwire-replicas",
        "PodDisruptionBudget latentwire",
        "HorizontalPodAutoscaler latentwire",
    ]


def test_kustomize_replaces_the_image_by_a_versioned_one() -> None:
    file = ROOT / "deploy/kubernetes/kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    assert all((file.parent / name).is_file() for name in kustomization["resources"])
    (image,) = kustomization["images"]
    assert image["name"] == SERVE["image"]
    assert "/" in image["newName"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", image["newTag"])


def test_the_autoscaler_alone_owns_the_number_of_replicas() -> None:
    assert "replicas" not in BY_KIND["Deployment"]["spec"]
    target = BY_KIND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == BY_KIND["Deployment"]["metadata"]["name"]


def test_a_rollout_may_take_as_long_as_a_start() -> None:
    startup = SERVE["startupProbe"]
    start_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert BY_KIND["Deployment"]["spec"]["progressDeadlineSeconds"] > start_s


def test_one_slow_answer_does_not_take_a_replica_out() -> None:
    assert SERVE["readinessProbe"]["failureThreshold"] > 1


def test_the_headless_service_resolves_to_ready_replicas_on_their_own_port() -> None:
    (headless,) = [m for m in MANIFESTS if m.get("spec", {}).get("clusterIP") == "None"]
    spec = headless["spec"]
    assert spec["selector"] == BY_KIND["Deployment"]["spec"]["selector"]["matchLabels"]
    # DNS gives addresses only, so the port is the container's.
    assert [port["port"] for port in spec["ports"]] == [SERVE["ports"][0]["containerPort"]]
    assert not spec.get("publishNotReadyAddresses", False)


def test_models_outlive_the_pod_and_the_hub_token_is_optional() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    claim = BY_KIND["PersistentVolumeClaim"]
    name = claim["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == name
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volumes["hf-token"]["secret"]["optional"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in SERVE["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    token = next(v["value"] for v in SERVE["env"] if v["name"] == "HF_TOKEN_PATH")
    assert token.startswith(mounts["hf-token"] + "/")


def test_replicas_tolerate_gpu_nodes_and_spread() -> None:
    assert [toleration["key"] for toleration in POD["tolerations"]] == ["nvidia.com/gpu"]
    labels = BY_KIND["Deployment"]["spec"]["selector"]["matchLabels"]
    for constraint in POD["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == labels
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


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
    variables = {variable["name"] for variable in SERVE["env"]} - {"HOME", "HF_TOKEN_PATH"}
    names = {name.removeprefix("LATENTWIRE_").lower() for name in variables}
    assert flags
    assert names
    assert flags | names <= set(Settings.model_fields)


def metrics_of(text: str) -> set[str]:
    return {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in re.findall(r"latentwire_[a-z0-9_]+", text)
    }


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def queries() -> dict[str, list[str]]:
    """Return the expressions of each file that queries Prometheus."""
    dashboard = json.loads((ROOT / "deploy/grafana/latentwire.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    (metric,) = BY_KIND["HorizontalPodAutoscaler"]["spec"]["metrics"]
    adapter = yaml.safe_load((ROOT / "deploy/kubernetes/adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["matches"] == metric["pods"]["metric"]["name"]
    return {
        "dashboard": panels,
        "autoscaler": [metric["pods"]["metric"]["name"]],
        "adapter": [rule["seriesQuery"], rule["metricsQuery"]],
        "alerts": [rule["expr"] for rule in rules()],
    }


def test_dashboard_autoscaler_and_alerts_use_metrics_that_exist() -> None:
    shown = Metrics().render().decode()
    known = set(re.findall(r"^# TYPE (\S+)", shown, re.MULTILINE))
    used = {name: metrics_of(" ".join(expressions)) for name, expressions in queries().items()}
    assert all(used.values())
    assert set.union(*used.values()) <= known
    assert len(used["dashboard"]) > 8


# Added when Prometheus scrapes, or by its adapter.
SCRAPED = {"job", "instance", "namespace", "pod", "node", "replica"}


def label_names() -> dict[str, set[str]]:
    """Return the labels of each metric, by the names of its samples."""
    names = {}
    for name, collector in Metrics()._registry._names_to_collectors.items():
        own = set(getattr(collector, "_labelnames", ()))
        names[name] = own | ({"le"} if name.endswith("_bucket") else set())
    return names


def test_dashboard_and_alerts_use_labels_that_exist() -> None:
    known = label_names()
    num_checked = 0
    for query in [query for name in ("dashboard", "alerts") for query in queries()[name]]:
        used = re.findall(r"(latentwire_[a-z0-9_]+)(?:\{([^}]*)\})?", query)
        for metric, matchers in used:
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= known[metric] | SCRAPED, query
            num_checked += len(labels)
        together = SCRAPED.union(*(known[metric] for metric, _ in used))
        for grouping in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query):
            labels = set(filter(None, re.split(r"[\s,]+", grouping)))
            assert labels <= together, query
            num_checked += len(labels)
    assert num_checked > 10
    dashboard = json.loads((ROOT / "deploy/grafana/latentwire.json").read_text())
    legends = [t.get("legendFormat", "") for p in dashboard["panels"] for t in p["targets"]]
    shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", " ".join(legends)))
    for rule in rules():
        shown |= set(re.findall(r"\$labels\.(\w+)", json.dumps(rule)))
    assert shown
    assert shown <= set().union(SCRAPED, *known.values())


def test_probes_are_not_counted_as_requests() -> None:
    counted = [q for name in ("dashboard", "alerts") for q in queries()[name]]
    for query in counted:
        for labels in re.findall(r"latentwire_requests_total(\{[^}]*\})?", query):
            assert 'path=~"/plan_latent|/v1/chat/completions"' in labels


def test_the_operators_rules_are_those_of_the_file() -> None:
    assert MONITORING["PrometheusRule"]["spec"] == ALERTS
    labels = BY_KIND["Deployment"]["spec"]["selector"]["matchLabels"]
    monitor = MONITORING["PodMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == SERVE["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"


def test_each_alert_states_the_problem_and_a_remedy() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+m", rule.get("for", "1m"))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_files(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL
    ended = subprocess.run(
        [PROMTOOL, *arguments], cwd=ROOT / "deploy/prometheus", capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_scrapes_the_replicas_of_the_compose_file() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert config["rule_files"] == ["alerts.yml"]
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
    assert len(bodies) == 5
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


def test_the_gateway_names_its_own_limit_of_a_body() -> None:
    text = (ROOT / "deploy/gateway/nginx.conf").read_text()
    limit = re.findall(r"client_max_body_size (\d+)m;", text)
    assert limit == re.findall(r"the gateway takes (\d+) MiB", text)
