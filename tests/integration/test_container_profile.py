"""The images and the compose profile `cpu`, run by a container engine: `make test-containers`."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from latentwire import Client
from support.batch.collecting import write_tasks
from support.container_site import ROOT, Engine, Site, base_image, build, find_engine, free_ports

IMAGES = {"service": "latentwire-test-cpu", "batch": "latentwire-test-batch"}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
READY_TIMEOUT_S = 400.0
NUM_TASKS = 48

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = find_engine()
    if found is None:
        pytest.skip("neither docker with its compose plugin nor podman with podman-compose works")
    base = base_image(found)
    if base is None:
        pytest.skip("the base image is not here and cannot be pulled")
    for target, tag in IMAGES.items():
        build(found, target, tag, base)
    return found


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("compose")
    (folder / "data").mkdir()
    (folder / "out").mkdir()
    write_tasks(folder / "data" / "tasks.jsonl", NUM_TASKS)
    if os.getuid() == 0:
        os.chown(folder / "out", 1000, 1000)
    # In podman without root, the container's root is this user.
    user = "0:0" if engine.name == "podman" else f"{os.getuid()}:{os.getgid()}"
    ports = free_ports(3)
    variables = {
        **{"PORT_0": str(ports[0]), "PORT_1": str(ports[1]), "GATEWAY_PORT": str(ports[2])},
        **{"CPU_IMAGE": IMAGES["service"], "BATCH_IMAGE": IMAGES["batch"]},
        **{"DATA_DIR": str(folder / "data"), "OUT_DIR": str(folder / "out")},
        "BATCH_USER": "1000:1000" if os.getuid() == 0 else user,
    }
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    replicas = {"cpu-0": urls[0], "cpu-1": urls[1]}
    gateway = COMPOSE["services"]["gateway"]["image"].partition(":-")[2].rstrip("}")
    has_gateway = engine.has_image(gateway)
    site = Site(engine, "lwtest", variables, replicas, urls[2] if has_gateway else None)
    try:
        site.up()
        for url in replicas.values():
            with Client(url) as client:
                client.wait_ready(READY_TIMEOUT_S)
        yield site
    finally:
        site.down()


def in_container(site: Site, service: str, *command: str) -> str:
    return site.engine.run("exec", site.container(service), *command)


def test_a_plan_arrives_through_the_gateway_or_from_each_replica(site: Site) -> None:
    urls = [site.gateway_url] if site.gateway_url else [*site.replica_urls.values()]
    answers = []
    for url in urls:
        with Client(url) as client:
            answers.append(client.plan_latent("Clean the kettle", k=2, max_new_tokens=4, seed=1))
    assert {answer.hidden_state.shape for answer in answers} == {(2, 576)}
    assert len({answer.plan for answer in answers}) == 1


@pytest.mark.parametrize("service", ["cpu-0", "cpu-1"])
def test_a_replica_has_no_root_no_capabilities_and_a_read_only_file_system(
    site: Site, service: str
) -> None:
    assert in_container(site, service, "id", "-u") == "1000"
    status = in_container(site, service, "cat", "/proc/self/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    for folder in ("/", "/home/latentwire", "/opt/latentwire", "/run"):
        with pytest.raises(AssertionError, match="(?i)read-only|denied"):
            in_container(site, service, "touch", f"{folder}/written")
    in_container(site, service, "touch", "/tmp/written", "/models/written")


def test_health_checks_use_no_proxy(site: Site) -> None:
    compose_check = COMPOSE["services"]["cpu-0"]["healthcheck"]["test"][1:]
    (line,) = re.findall(r"^  CMD (\[\"python\".*\])$", (ROOT / "Dockerfile").read_text(), re.M)
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    proxies = [f"--env={name}=http://127.0.0.1:9" for name in names]
    for check in (compose_check, json.loads(line)):
        site.engine.run("exec", *proxies, site.container("cpu-0"), *check)


def test_the_batch_image_has_no_torch_no_compiler_and_is_the_smaller_one(engine: Engine) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'fastapi') if u.find_spec(n)])"
    entry = ("run", "--rm", "--entrypoint")
    assert engine.run(*entry, "python", IMAGES["batch"], "-c", code) == "[]"
    look = "command -v cc gcc g++ || echo none"
    assert engine.run(*entry, "sh", IMAGES["batch"], "-c", look) == "none"
    sizes = [int(engine.run("image", "inspect", "-f", "{{.Size}}", tag)) for tag in IMAGES.values()]
    assert sizes[1] < sizes[0] / 2


def test_a_model_that_cannot_be_served_ends_the_container_with_status_2(engine: Engine) -> None:
    command = [engine.name, "run", "--rm", IMAGES["service"], "serve", "--model", "/nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=READY_TIMEOUT_S)
    assert ended.returncode == 2, ended.stderr


def test_collect_loses_no_row_when_a_replica_is_killed(site: Site) -> None:
    out = Path(site.variables["OUT_DIR"])
    settings = {"LATENTWIRE_COLLECT_MAX_NEW_TOKENS": "24", "LATENTWIRE_COLLECT_K": "4"}
    names = host_names(site)
    collecting = site.compose("--profile", "batch", "run", "--rm", "-T", "batch", **settings)
    log = out / ".partial" / "rows.log"
    wait_until(lambda: log.exists() and log.stat().st_size > 10_000, collecting)
    site.engine.run("kill", "--signal", "KILL", site.container("cpu-1"))
    output, _ = collecting.communicate(timeout=READY_TIMEOUT_S)
    assert collecting.returncode == 0, output.decode(errors="replace")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["finished"] == NUM_TASKS
    assert manifest["replicas"]["count"] == 2
    table = pq.read_table(out / "data.parquet")
    assert table.num_rows == NUM_TASKS
    texts = [repr(table.schema.metadata), repr(table.drop_columns(["hidden_state"]).to_pylist())]
    files = [path for path in out.rglob("*") if path.is_file()]
    texts += [path.read_text() for path in files if path.suffix in {".json", ".jsonl", ".md"}]
    assert not [name for name in names if any(is_named(name, text) for text in texts)]
    # In bytes, a short name could occur by chance.
    content = b"".join(path.read_bytes() for path in files)
    assert not [name for name in names if len(name) > 7 and name.encode() in content]


def is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text) is not None


def host_names(site: Site) -> list[str]:
    """Return what a dataset must not contain: names, paths and addresses of the machines."""
    names = [socket.gethostname(), str(ROOT), site.variables["OUT_DIR"], "/out", "/data/"]
    names += ["replicas:8000", f"/home/{getpass.getuser()}"]
    for service in site.replica_urls:
        container = site.container(service)
        names += [container, site.engine.run("inspect", "-f", "{{.Config.Hostname}}", container)]
        found = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        names.append(site.engine.run("inspect", "-f", found, container))
    assert all(names)
    return names


def wait_until(is_true: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not is_true():
        assert process.poll() is None, process.communicate()[0].decode(errors="replace")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_lets_a_running_request_finish_and_exits_with_status_0(site: Site) -> None:
    container = site.container("cpu-0")
    with (
        Client(site.replica_urls["cpu-0"], max_retries=0) as client,
        client.stream_plan_latent("Count", k=1, max_new_tokens=120, do_sample=False) as stream,
    ):
        next(iter(stream))
        site.engine.run("kill", "--signal", "TERM", container)
        steps = sum(1 for _ in stream)
    assert steps > 0
    assert site.engine.run("wait", container) == "0"
    running = site.engine.run("inspect", "-f", "{{.State.Running}}", container)
    assert running == "false"
