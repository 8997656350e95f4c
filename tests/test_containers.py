"""The Dockerfile and the compose file, checked as text: no container engine is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentwire_batch.config import CollectSettings
from latentwire_service.settings import Settings
from support.batch.stub_replica import StubReplica

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REPLICAS = {name: spec for name, spec in SERVICES.items() if name.startswith("replica-")}
NUM_GPUS = (1, 2, 4, 8)

ENVIRONMENT_NAMES = {f"LATENTWIRE_{name.upper()}" for name in Settings.model_fields} | {
    f"LATENTWIRE_COLLECT_{name.upper()}" for name in CollectSettings.model_fields
}


def makefile_variable(name: str) -> str:
    found = re.search(rf"^{name} := (.+)$", MAKEFILE, re.MULTILINE)
    assert found, name
    return found[1]


def instructions(keyword: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{keyword} (.+)$", joined, re.MULTILINE)


def interpolated(text: str) -> str:
    """Replace `${NAME:-default}` like compose does when NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def device_ids(spec: dict[str, Any]) -> list[str]:
    (device,) = spec["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    ids: list[str] = device["device_ids"]
    return ids


def flags(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith("--")}


def flag_names(settings: type[Settings] | type[CollectSettings]) -> set[str]:
    return {"--" + name.replace("_", "-") for name in settings.model_fields}


def test_dockerfile_installs_with_the_makefiles_own_line() -> None:
    pip_lines = [line for line in instructions("RUN") if "pip" in line]
    assert set(pip_lines) == {
        makefile_variable("INSTALL"),
        makefile_variable("INSTALL_DEMO_MODEL"),
    }
    # The last line installs the sources, which were copied just before.
    assert pip_lines[-1] == makefile_variable("INSTALL")


def test_dockerfile_copies_the_dependencies_before_the_sources() -> None:
    copies = instructions("COPY")
    assert copies[0] == "pyproject.toml constraints.txt ./"
    assert {f"{layer} {layer}" for layer in ("client", "service", "batch")} <= set(copies)
    first_install = DOCKERFILE.index(f"RUN {makefile_variable('INSTALL')}")
    assert DOCKERFILE.index("COPY pyproject.toml") < first_install
    assert first_install < DOCKERFILE.index("COPY client")


def test_dockerignore_allows_exactly_the_copied_files() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {source for copy in instructions("COPY") for source in copy.split()[:-1]}
    assert "*" in lines
    assert allowed == copied
    assert all((ROOT / source).exists() for source in copied)


def test_image_runs_as_a_user_that_is_not_root() -> None:
    assert instructions("USER") == ["1000:1000"]


def test_image_serves_by_default_and_checks_health() -> None:
    assert instructions("ENTRYPOINT") == ['["latentwire"]']
    assert instructions("CMD") == ['["serve", "--host", "0.0.0.0"]']
    (check,) = instructions("HEALTHCHECK")
    assert "/health" in check
    assert '"python"' in check


def health_checks() -> list[list[str]]:
    """The commands that run Python; the other checks are nginx's."""
    (of_image,) = instructions("HEALTHCHECK")
    commands = [json.loads(of_image[of_image.index("CMD") + 3 :])]
    for spec in SERVICES.values():
        test = spec.get("healthcheck", {}).get("test")
        if test and test[1] == "python":
            commands.append(test[1:])
    return commands


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_health_checks_ignore_proxies(variable: str) -> None:
    """The service of a container is in the same container, where no proxy can reach it."""
    with StubReplica() as stub:
        checks = {" ".join(command): command for command in health_checks()}
        for command in checks.values():
            code = command[-1].replace("127.0.0.1:8000", f"127.0.0.1:{stub.port}")
            proxies = {variable: "http://127.0.0.1:9", "LATENTWIRE_PORT": str(stub.port)}
            subprocess.run([sys.executable, "-c", code], env=os.environ | proxies, check=True)


def test_the_volume_keeps_the_models() -> None:
    assert instructions("VOLUME") == ["/models"]
    assert "HF_HOME=/models/" in DOCKERFILE
    assert "LATENTWIRE_CACHE_DIR=/models/" in DOCKERFILE
    assert all(spec["volumes"] == ["models:/models"] for spec in REPLICAS.values())
    assert "models" in COMPOSE["volumes"]


@pytest.mark.parametrize("num_gpus", NUM_GPUS)
def test_a_profile_starts_one_replica_per_gpu(num_gpus: int) -> None:
    started = [s for s in REPLICAS.values() if f"gpu{num_gpus}" in s["profiles"]]
    assert [device_ids(spec) for spec in started] == [[str(gpu)] for gpu in range(num_gpus)]


def test_every_replica_has_its_own_loopback_port() -> None:
    published = [spec["ports"] for spec in REPLICAS.values()]
    assert published == [[f"127.0.0.1:{8000 + gpu}:8000"] for gpu in range(max(NUM_GPUS))]


def test_replicas_differ_in_gpu_port_and_profile_only() -> None:
    own = {"deploy", "ports", "profiles"}
    common = [{key: spec[key] for key in spec.keys() - own} for spec in REPLICAS.values()]
    assert all(spec == common[0] for spec in common)


def test_a_replica_takes_three_lines() -> None:
    body = COMPOSE_TEXT.partition("  replica-0:")[2].partition("  replica-1:")[0]
    assert len([line for line in body.splitlines() if line.strip()]) == 3


def test_replicas_are_checked_for_readiness() -> None:
    assert all("/ready" in spec["healthcheck"]["test"][-1] for spec in REPLICAS.values())


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_runs_as_root_or_with_capabilities(name: str) -> None:
    uid, _, gid = interpolated(SERVICES[name]["user"]).partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_nothing_is_published_beyond_loopback() -> None:
    ports = [port for spec in SERVICES.values() for port in spec.get("ports", [])]
    assert len(ports) == len(REPLICAS) + 1
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_replicas_run_serve_with_flags_that_exist() -> None:
    for spec in REPLICAS.values():
        assert spec["command"][0] == "serve"
        assert flags(spec["command"]) <= flag_names(Settings)


def test_batch_collects_from_all_replicas_of_the_profile() -> None:
    batch = SERVICES["batch"]
    assert batch["profiles"] == ["batch"]
    assert batch["command"][0] == "collect"
    assert flags(batch["command"]) <= flag_names(CollectSettings)
    address = batch["command"][batch["command"].index("--replica") + 1]
    for spec in REPLICAS.values():
        assert [f"http://{name}:8000" for name in spec["networks"]["default"]["aliases"]] == [
            address
        ]


def test_batch_waits_until_replicas_are_ready() -> None:
    waits = SERVICES["batch"]["depends_on"]
    assert set(waits) == set(REPLICAS)
    assert all(wait["condition"] == "service_healthy" for wait in waits.values())
    # Every profile has replica 0; the chosen one may lack the others.
    assert [wait.get("required", True) for wait in waits.values()] == [True] + [False] * 7


def test_batch_reads_and_writes_mounted_folders() -> None:
    mounts = {mount["target"]: mount for mount in SERVICES["batch"]["volumes"]}
    command = [interpolated(word) for word in SERVICES["batch"]["command"]]
    dataset = command[command.index("--dataset") + 1]
    assert mounts["/data"]["read_only"] is True
    assert command[command.index("--output-dir") + 1] == "/out"
    assert not mounts["/out"].get("read_only", False)
    # By default, batch collects the repository's own tasks.
    host_folder = interpolated(mounts["/data"]["source"])
    assert (ROOT / host_folder / Path(dataset).relative_to("/data")).is_file()


def test_every_setting_in_the_environment_exists() -> None:
    named = set(re.findall(r"\bLATENTWIRE_\w+", DOCKERFILE + COMPOSE_TEXT))
    assert named
    assert named <= ENVIRONMENT_NAMES
