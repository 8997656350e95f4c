from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from latentwire import ProtocolError
from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import UsageError
from latentwire_batch.ranks.gpus import visible_gpus
from latentwire_batch.replicas.child_environment import child_environment
from latentwire_batch.replicas.health_watch import until_hung
from latentwire_batch.replicas.local_plan import plan_local_replicas, serve_command
from support.batch.collecting import Collect, WatchedStream
from support.batch.dataset_oracle import assert_complete, tasks_of

SETTINGS = CollectSettings(dataset=("in",), output_dir=Path("out"))


@pytest.fixture
def as_children(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Start stubs as own replicas, in the same way as the real module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def use(*flags: str) -> None:
        def command(_: CollectSettings) -> tuple[str, ...]:
            return ("support.batch.stub_replica", *flags)

        monkeypatch.setattr("latentwire_batch.replicas.local_plan.serve_command", command)

    return use


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("0,1", ["0", "1"]),
        ("3", ["3"]),
        ("", []),
        ("-1", []),
        ("0,-1,2", ["0"]),
        ("GPU-a", ["GPU-a"]),
        ("MIG-a, MIG-GPU-b/1/0", ["MIG-a", "MIG-GPU-b/1/0"]),
        # What Slurm and container runtimes write where there is none.
        ("NoDevFiles", []),
        ("none", []),
        ("0,void", ["0"]),
    ],
)
def test_the_environment_lists_the_visible_gpus(listed: str, gpus: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == gpus


def test_the_driver_lists_the_gpus_when_the_environment_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: B (UUID: y)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus({}) == ["0", "1"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus({}) == []


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        # A divided GPU and a whole one.
        (
            "#!/bin/sh\ncat <<end\nGPU 0: A (UUID: GPU-x)\n  MIG 3g.40gb Device  0: (UUID: MIG-a)\n"
            "  MIG 3g.40gb Device  1: (UUID: MIG-b)\nGPU 1: B (UUID: GPU-y)\nend\n",
            ["MIG-a", "MIG-b", "1"],
        ),
        ("#!/bin/sh\nprintf 'GPU 0: \\351 (UUID: x)\\n'\n", ["0"]),
        ("#!/bin/sh\necho 'No devices were found'; exit 6\n", []),
        ("not a program of this machine", []),
        ("#!/nowhere/interpreter\n", []),
    ],
    ids=["MIG", "bytes", "no driver", "no program", "no interpreter"],
)
def test_answers_of_the_drivers_tool(
    script: str, gpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus({}) == gpus


def test_a_driver_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("latentwire_batch.ranks.gpus._TOOL_TIMEOUT_S", 0.1)
    assert visible_gpus({}) == []


@pytest.mark.parametrize(
    ("environ", "children"),
    [
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, [{"ROCR_VISIBLE_DEVICES": gpu} for gpu in "23"]),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, [{"HIP_VISIBLE_DEVICES": gpu} for gpu in "10"]),
        (
            {"CUDA_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": "4,5"},
            [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "45"],
        ),
        (
            {"HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "6,7"},
            [{"HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "6,7"}],
        ),
        ({"CUDA_VISIBLE_DEVICES": ""}, [{"CUDA_VISIBLE_DEVICES": ""}]),
    ],
)
def test_each_child_sees_its_gpu_through_the_variable_that_listed_it(
    environ: dict[str, str], children: list[dict[str, str]]
) -> None:
    specs = plan_local_replicas(SETTINGS, environ)
    assert [child_environment(environ, spec.gpu) for spec in specs] == children


def test_each_gpu_gets_a_replica() -> None:
    specs = plan_local_replicas(SETTINGS, {"CUDA_VISIBLE_DEVICES": "2,5"})
    assert [spec.gpu for spec in specs] == ["2", "5"]
    assert [spec.index for spec in specs] == [0, 1]
    on_cpu = SETTINGS.model_copy(update={"device": "cpu"})
    assert [spec.gpu for spec in plan_local_replicas(on_cpu, {"CUDA_VISIBLE_DEVICES": "2"})] == [
        None
    ]


def test_gpus_that_share_a_model_are_seen_by_one_replica() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}
    settings = SETTINGS.model_copy(update={"engine": "vllm", "tensor_parallel_size": 2})
    assert [spec.gpu for spec in plan_local_replicas(settings, environ)] == ["0,1", "2,3"]
    (spec,) = plan_local_replicas(
        settings.model_copy(update={"pipeline_parallel_size": 2}), environ
    )
    assert child_environment(environ, spec.gpu)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    wide = settings.model_copy(update={"tensor_parallel_size": 8})
    with pytest.raises(UsageError, match="one replica needs 8 GPUs, and 5 can be used"):
        plan_local_replicas(wide, environ)


def test_settings_of_the_engine_are_passed_on() -> None:
    changes = {
        "engine": "vllm",
        "tensor_parallel_size": 4,
        "gpu_memory_utilization": 0.7,
        "quantization": "fp8",
        "engine_arg": ("enforce_eager=true", 'x={"a": 1, "b": 2}'),
    }
    command = serve_command(SETTINGS.model_copy(update=changes))
    assert command[command.index("--engine") :] == (
        *("--engine", "vllm", "--tensor-parallel-size", "4"),
        *("--gpu-memory-utilization", "0.7", "--quantization", "fp8"),
        *("--engine-arg", "enforce_eager=true", "--engine-arg", 'x={"a": 1, "b": 2}'),
    )


def test_flags_for_own_replicas_are_passed_on() -> None:
    settings = SETTINGS.model_copy(update={"model": "m", "threads": 2, "max_slots": "auto"})
    assert serve_command(settings) == (
        *("latentwire", "serve", "--host", "127.0.0.1", "--log-format", "json"),
        *("--model", "m", "--threads", "2", "--max-slots", "auto"),
    )


def test_own_replicas_are_started_and_stopped(
    as_children: Callable[..., None], collect: Collect, output: Path, tasks: Path
) -> None:
    as_children()
    assert collect().status == 0
    assert_complete(output, tasks_of(tasks))


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://"])
def test_proxies_are_not_used_for_own_replicas(
    as_children: Callable[..., None],
    collect: Collect,
    proxy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    as_children()
    assert collect("--limit", "2").status == 0


def test_an_own_replica_that_dies_is_restarted(
    as_children: Callable[..., None], collect: Collect, output: Path, tasks: Path
) -> None:
    as_children("--die-after", "25")
    ended = collect()
    assert ended.status == 0
    assert "own replica 0 exited with status 9; restarting" in ended.stderr
    assert_complete(output, tasks_of(tasks))


def test_an_own_replica_that_hangs_is_restarted(
    as_children: Callable[..., None],
    collect: Collect,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped process keeps its connections, so that only a probe can notice."""
    as_children("--stop-after", "25", "--max-slots", "2")
    monkeypatch.setattr("latentwire_batch.replicas.local.HANG_PATIENCE_S", 1.0)
    monkeypatch.setattr("latentwire.async_client.PROBE_TIMEOUT_S", 0.5)
    others = child_pids()
    ended = collect()
    assert ended.status == 0
    assert "own replica 0 hangs: it has not been healthy for 1 s; ending it" in ended.stderr
    assert "own replica 0 exited with status -9; restarting" in ended.stderr
    assert_complete(output, tasks_of(tasks))
    assert child_pids() <= others


def test_a_process_hangs_only_after_it_was_healthy_once() -> None:
    answers = [False] * 20 + [True] + [False] * 3 + [True]
    num_probes = 0
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    async def probe() -> bool:
        nonlocal num_probes
        num_probes += 1
        if num_probes == 5:
            raise ProtocolError("another service")
        return answers.pop(0) if answers else False

    asyncio.run(until_hung(probe, 40.0, lambda: now_s, sleep))
    # A probe every 5 s: 25 answers, then 8 without health until the patience of 40 s ends.
    assert num_probes == 1 + 25 + 8


def test_the_output_of_an_own_replica_that_cannot_start_is_shown(
    as_children: Callable[..., None], collect: Collect, output: Path
) -> None:
    as_children("--no-such-flag")
    ended = collect()
    assert ended.status == 2
    assert "own replica 0 failed to start (status 2)" in ended.stderr
    assert "unrecognized arguments: --no-such-flag" in ended.stderr
    assert not output.exists()


def test_only_the_error_of_an_own_replica_without_a_model_is_shown(
    as_children: Callable[..., None], collect: Collect
) -> None:
    as_children("--refuse-model")
    ended = collect()
    assert ended.status == 2
    assert ended.stderr.endswith(
        "own replica 0 failed to start (status 2):\n"
        "  ERROR latentwire_service.model_service: cannot serve the model: none there\n"
    )


def test_an_interrupt_while_replicas_start_leaves_nothing(
    as_children: Callable[..., None], collect: Collect, stderr: WatchedStream, output: Path
) -> None:
    as_children("--not-ready")
    others = child_pids()

    def interrupt() -> None:
        stderr.wait_for("starting 1 replica")
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    assert collect().status == 130
    helper.join()
    assert not output.exists()
    assert child_pids() <= others


def child_pids() -> set[str]:
    """List this process's children; empty where there is no /proc."""
    children = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state ppid ...: the name may hold anything, also spaces and brackets.
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                children.add(stat.parent.name)
    return children


def test_a_tethered_process_ends_with_its_parent(as_children: Callable[..., None]) -> None:
    as_children()
    command = [
        sys.executable,
        "-m",
        "latentwire_batch.replicas.tethered",
        "support.batch.stub_replica",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        process.stdin.close()
        assert process.wait(180) == -signal.SIGTERM
