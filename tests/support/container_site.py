"""A container engine with its compose command, and the profile `cpu` running in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.network.ports import free_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# What a machine without a registry can import under this name, from its distribution's packages.
LOCAL_PYTHON = "docker.io/library/python:3.11-slim"
COMMAND_TIMEOUT_S = 300
BUILD_TIMEOUT_S = 1500


@dataclass(frozen=True)
class Engine:
    """Docker with its compose plugin, or podman with podman-compose.

    Attributes:
        name: the engine's command.
        compose: the compose command.
        build_flags: extra flags of `build`.
    """

    name: str
    compose: tuple[str, ...]
    build_flags: tuple[str, ...]

    def run(self, *args: str, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run the engine's command and return what it writes."""
        return run((self.name, *args), check=check, timeout_s=timeout_s)

    def succeeds(self, *args: str) -> bool:
        """Return whether the engine's command exits with status 0."""
        return status_of((self.name, *args)) == 0

    def has_image(self, image: str) -> bool:
        """Return whether an image is here, or can be pulled."""
        return self.succeeds("image", "inspect", image) or self.succeeds("pull", "--quiet", image)


def run(command: Sequence[str], check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a command and return its stdout; stderr is shown when it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    assert ended.returncode == 0 or not check, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout.strip()


def status_of(command: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    return subprocess.run(
        command, capture_output=True, timeout=COMMAND_TIMEOUT_S, cwd=ROOT
    ).returncode


def find_engine() -> Engine | None:
    """Return an engine that works here, or None."""
    docker = (("docker", "info"), ("docker", "compose", "version"))
    if shutil.which("docker") and all(status_of(command) == 0 for command in docker):
        return Engine("docker", ("docker", "compose"), ())
    beside = str(Path(sys.executable).parent)
    compose = shutil.which("podman-compose", path=f"{beside}:{os.environ.get('PATH', '')}")
    if compose and shutil.which("podman") and status_of(("podman", "info")) == 0:
        # Neither needs a network of the build's own, nor privileges to make one.
        return Engine("podman", (compose,), ("--isolation", "chroot", "--network", "host"))
    return None


def base_image(engine: Engine) -> str | None:
    """Return the Dockerfile's own base, a local one of the same Python, or None."""
    pinned = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert pinned
    return next((image for image in (pinned[1], LOCAL_PYTHON) if engine.has_image(image)), None)


def build(engine: Engine, target: str, tag: str, base: str) -> None:
    """Build one target of the Dockerfile."""
    args = ["--build-arg", f"PYTHON_IMAGE={base}", "--target", target, "--tag", tag, "."]
    engine.run("build", *engine.build_flags, *args, timeout_s=BUILD_TIMEOUT_S)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


@dataclass(frozen=True)
class Site:
    """One compose project.

    Attributes:
        engine: that runs it.
        project: the project's name.
        variables: of the compose file.
        replica_urls: the published address of each replica, by service.
        gateway_url: the gateway's address; None where its image is missing.
    """

    engine: Engine
    project: str
    variables: Mapping[str, str]
    replica_urls: Mapping[str, str]
    gateway_url: str | None

    def compose(self, *args: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start the compose command; its stdout and stderr are kept together."""
        command = (*self.engine.compose, "-p", self.project, *args)
        environment = {**os.environ, **self.variables, **variables}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def up(self) -> None:
        """Start the replicas, and the gateway where its image is present."""
        services = [*self.replica_urls, *(["gateway"] if self.gateway_url else [])]
        _end(self.compose("--profile", "cpu", "up", "-d", "--no-build", *services))

    def down(self) -> None:
        """Stop and remove everything, volumes too."""
        _end(self.compose("--profile", "cpu", "--profile", "batch", "down", "--volumes"))

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items()]
        return self.engine.run("ps", "--all", "--quiet", *filters).split()[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, output.decode(errors="replace")
