"""The examples with vLLM on four GPUs are valid, and change what they must and no more."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from latentwire_service.settings import Settings
from latentwire_service.vllm_engine.options import TESTED_VERSIONS

ROOT = Path(__file__).parents[1]
OVERLAY = ROOT / "deploy/kubernetes-vllm"
KUSTOMIZATION = yaml.safe_load((OVERLAY / "kustomization.yaml").read_text(encoding="utf-8"))
NUM_GPUS = 4


def base_manifests() -> dict[tuple[str, str], dict[str, Any]]:
    (resource,) = KUSTOMIZATION["resources"]
    folder = (OVERLAY / resource).resolve()
    names = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    documents = [
        document
        for name in names
        for document in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))
    ]
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


def patches() -> list[dict[str, Any]]:
    paths = [OVERLAY / patch["path"] for patch in KUSTOMIZATION["patches"]]
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]


# The keys by which Kubernetes merges these lists.
MERGE_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def merged(old: Any, new: Any, name: str = "") -> Any:
    """Apply a strategic merge patch."""
    if isinstance(old, dict) and isinstance(new, dict):
        joined = {key: merged(old.get(key), value, key) for key, value in new.items()}
        return {**old, **joined}
    if isinstance(old, list) and isinstance(new, list):
        key = MERGE_KEYS[name]
        by_key = {item[key]: item for item in old}
        by_key |= {item[key]: merged(by_key.get(item[key]), item) for item in new}
        return list(by_key.values())
    return copy.deepcopy(new)


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    found = base_manifests()
    for patch in patches():
        key = (patch["kind"], patch["metadata"]["name"])
        found[key] = merged(found[key], patch)
    return found


DEPLOYMENT = manifests()["Deployment", "latentwire"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(SERVE,) = POD["containers"]


@pytest.mark.parametrize("patch", patches(), ids=lambda patch: patch["kind"])
def test_a_patch_names_a_manifest_that_exists_and_gives_a_valid_one(patch: dict[str, Any]) -> None:
    key = (patch["kind"], patch["metadata"]["name"])
    assert patch["apiVersion"] == base_manifests()[key]["apiVersion"]
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(manifests()[key], version, strict=True)


def test_a_pod_has_as_many_gpus_as_its_model_is_split_over() -> None:
    environment = {variable["name"]: variable["value"] for variable in SERVE["env"]}
    assert environment["LATENTWIRE_ENGINE"] == "vllm"
    assert environment["LATENTWIRE_TENSOR_PARALLEL_SIZE"] == str(NUM_GPUS)
    for kind in ("requests", "limits"):
        assert SERVE["resources"][kind]["nvidia.com/gpu"] == str(NUM_GPUS)
    names = {name.removeprefix("LATENTWIRE_").lower() for name in environment}
    assert names - {"home", "hf_token_path"} <= set(Settings.model_fields)


def test_a_pod_has_memory_that_its_processes_share() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in SERVE["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert set(mounts.values()) == volumes.keys()
    shared = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shared["medium"] == "Memory"
    size, limit = (
        int(text.removesuffix("Gi"))
        for text in (shared["sizeLimit"], SERVE["resources"]["limits"]["memory"])
    )
    assert size < limit


def test_the_pod_keeps_the_rest_of_the_base() -> None:
    base = base_manifests()["Deployment", "latentwire"]["spec"]["template"]["spec"]
    (serve,) = base["containers"]
    for key in ("args", "ports", "lifecycle", "livenessProbe", "readinessProbe", "securityContext"):
        assert SERVE[key] == serve[key]
    old = {variable["name"] for variable in serve["env"]}
    assert old < {variable["name"] for variable in SERVE["env"]}
    assert POD["securityContext"] == base["securityContext"]


def test_a_rollout_may_take_as_long_as_a_start() -> None:
    startup = SERVE["startupProbe"]
    assert (
        startup["periodSeconds"] * startup["failureThreshold"]
        < (DEPLOYMENT["progressDeadlineSeconds"])
    )


def test_the_overlay_replaces_the_image_that_the_base_names() -> None:
    base = ROOT / "deploy/kubernetes/kustomization.yaml"
    (named,) = yaml.safe_load(base.read_text(encoding="utf-8"))["images"]
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == named["newName"]
    assert image["newName"].endswith("/latentwire-vllm")
    assert image["newTag"] == named["newTag"]
    # Kustomize refuses a base that contains the overlay.
    assert not OVERLAY.is_relative_to(base.parent)


def test_the_image_has_a_version_of_vllm_that_was_tested() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (version,) = re.findall(r"^ARG VLLM_VERSION=(\S+)$", dockerfile, re.MULTILINE)
    assert version.rpartition(".")[0] in TESTED_VERSIONS
    pinned = (ROOT / "requirements-vllm.txt").read_text(encoding="utf-8")
    assert f"\nvllm-cpu=={version}\n" in pinned
