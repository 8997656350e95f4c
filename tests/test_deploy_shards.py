"""The files that collect shards on Slurm and Kubernetes are valid, and run as plain processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from latentwire_batch.config import CollectSettings
from latentwire_batch.shards.merge_settings import MergeSettings
from support.batch.collecting import write_tasks
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "deploy/slurm"
NUM_SHARDS = 3


def documents(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "deploy/kubernetes" / name).read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


CLAIM, COLLECT = documents("collect.yaml")
(MERGE,) = documents("merge.yaml")


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    pod = job["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def main_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("manifest", [CLAIM, COLLECT, MERGE], ids=["claim", "collect", "merge"])
def test_a_manifest_is_valid_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_job_has_a_pod_for_each_shard() -> None:
    spec = COLLECT["spec"]
    assert spec["completionMode"] == "Indexed"
    assert f"--shard=/{spec['completions']}" in main_of(COLLECT)["args"]
    # Without a limit for each index, FailIndex is no action.
    assert spec["backoffLimitPerIndex"] > 0
    for job in (COLLECT, MERGE):
        (container,) = [
            rule["onExitCodes"]["containerName"]
            for rule in job["spec"]["podFailurePolicy"]["rules"]
            if "onExitCodes" in rule
        ]
        assert container == main_of(job)["name"]
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_collector_sends_to_the_sidecar_of_its_pod_alone() -> None:
    serve, collect = containers(COLLECT)
    assert serve["restartPolicy"] == "Always"
    words = dict(zip(serve["args"][1::2], serve["args"][2::2], strict=True))
    assert f"--replica=http://{words['--host']}:{words['--port']}" in collect["args"]
    assert words["--host"] == "127.0.0.1"


@pytest.mark.parametrize("job", [COLLECT, MERGE], ids=["collect", "merge"])
def test_the_pods_have_no_privileges_and_share_the_volume(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    name = CLAIM["metadata"]["name"]
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == name
    for container in containers(job):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()


def flags_of(words: list[str]) -> set[str]:
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    return {flag[2:].replace("-", "_") for flag in given}


def test_flags_exist() -> None:
    assert flags_of(main_of(COLLECT)["args"]) <= set(CollectSettings.model_fields)
    assert flags_of(main_of(MERGE)["args"]) <= set(MergeSettings.model_fields)


def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `latentwire` is a command, as in an image."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    command = bin_ / "latentwire"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m latentwire "$@"\n', "utf-8")
    command.chmod(0o755)
    return os.environ | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def stub() -> Iterator[StubReplica]:
    with StubReplica() as replica:
        yield replica


@pytest.mark.slow
def test_the_jobs_run_as_plain_processes(tmp_path: Path, stub: StubReplica) -> None:
    environ = environment(tmp_path)
    tasks = write_tasks(tmp_path / "tasks.jsonl", 20)
    completions = COLLECT["spec"]["completions"]

    def command(job: dict[str, Any]) -> list[str]:
        words = ["latentwire", *main_of(job)["args"]]
        words = [re.sub(r"(^|=)/data/", rf"\1{tmp_path}/", word) for word in words]
        words = [word.replace("http://127.0.0.1:8000", stub.base_url) for word in words]
        return [word.replace(f"/{completions}", f"/{NUM_SHARDS}") for word in words]

    collect = [*command(COLLECT), "--max-new-tokens", "12", "--seed", "7"]
    pods = [
        subprocess.Popen(collect, env=environ | {"JOB_COMPLETION_INDEX": str(index)})
        for index in range(NUM_SHARDS)
    ]
    assert [pod.wait(120) for pod in pods] == [0] * NUM_SHARDS
    subprocess.run(command(MERGE), env=environ, check=True)
    assert_complete(tmp_path / "dataset", tasks_of(tasks))


# Runs what it is given as Slurm does: a process for each task of the array, and a job that depends
# on others after them.
SBATCH = """#!/usr/bin/env bash
set -eu
array='' echoed=''
while [[ $1 == --* ]]; do
  case $1 in
    --array=0-*) array=${1#--array=0-} ;;
    --parsable) echoed='77;cluster' ;;
    --dependency=afterany:77) [ -e "$SPOOL/77" ] ;;
    *) echo "unknown flag $1" >&2; exit 1 ;;
  esac
  shift
done
script=$(mktemp -p "$SPOOL"); cp "$1" "$script"; shift
cd "$WORKPLACE"
for task in $(seq 0 "${array:-0}"); do
  [ -z "$array" ] || export SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$((array + 1)) \\
    SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$array
  # Slurm's output goes to files, not to the terminal of sbatch.
  bash "$script" "$@" >> "$SPOOL/log" 2>&1 &
done
if [ -z "$array" ]; then wait $!; else wait; touch "$SPOOL/77"; fi
echo "$echoed"
"""


@pytest.mark.slow
def test_the_array_and_its_merging_run_as_plain_processes(
    tmp_path: Path, stub: StubReplica
) -> None:
    environ = environment(tmp_path)
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(SBATCH, "utf-8")
    sbatch.chmod(0o755)
    spool = tmp_path / "spool"
    spool.mkdir()
    environ |= {"SPOOL": str(spool), "WORKPLACE": str(tmp_path)}
    tasks = write_tasks(tmp_path / "tasks.jsonl", 20)
    failing = tasks_of(tasks)[4][1]
    stub.behaviour.task_faults = {failing: [422]}
    flags = ["--dataset", "tasks.jsonl", "--replica", stub.base_url, "--seed", "7"]
    command = [str(SLURM / "submit.sh"), str(NUM_SHARDS), "out", "dataset", *flags]
    command += ["--max-new-tokens", "12"]
    ended = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
    log = (spool / "log").read_text("utf-8")
    # One row failed, so its shard ended with status 3, and the merge ran all the same.
    assert ended.returncode == 3, ended.stderr + log
    for index in range(NUM_SHARDS):
        assert f"shard {index}/3: SLURM_ARRAY_TASK_ID is {index}, and --shard is /3" in log
    assert_complete(tmp_path / "dataset", tasks_of(tasks), without=(4,))


def test_a_submission_without_arguments_explains_itself() -> None:
    ended = subprocess.run([str(SLURM / "submit.sh")], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "submit.sh 16 out dataset --model MODEL" in ended.stderr


@pytest.mark.parametrize("name", ["collect.sbatch", "merge.sbatch", "submit.sh"])
def test_a_script_is_valid_and_its_directives_come_first(name: str) -> None:
    script = SLURM / name
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").splitlines()
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    # Slurm reads none after the first command.
    assert all(number < commands[0] for number in directives)
    assert bool(directives) == name.endswith(".sbatch")
