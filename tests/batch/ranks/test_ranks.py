from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import UsageError
from latentwire_batch.ranks.rank import ALONE, Rank, rank_of
from latentwire_batch.replicas.local_plan import plan_local_replicas
from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

SETTINGS = CollectSettings(dataset=("in",), output_dir=Path("out"))
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SCRIPT = Path(__file__).parents[3] / "batch" / "collect_hidden_states.py"
# For the start of processes on a busy machine.
_PATIENCE_S = 180.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def command(tasks: Path, output: Path) -> list[str]:
    flags = {"--model_name_or_path": "stub", "--dataset_path": tasks, "--output_dir": output}
    return [*(str(part) for pair in flags.items() for part in pair), *["--max_new_tokens", "12"]]


@pytest.fixture
def start(command: list[str]) -> Iterator[Start]:
    """Start one rank of two as a process, which sends its rows to a stub."""
    started: list[subprocess.Popen[str]] = []
    num_launches: Counter[int] = Counter()

    def run(rank: int, stub: StubReplica, *flags: str) -> subprocess.Popen[str]:
        environ = os.environ | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        environ |= {"LATENTWIRE_COLLECT_REPLICA": stub.base_url}
        environ |= {"LATENTWIRE_COLLECT_CONCURRENCY": "2"}
        # Launches differ by the launcher's process id, but here all have the same parent.
        num_launches[rank] += 1
        environ |= {"TORCHELASTIC_RUN_ID": str(num_launches[rank])}
        args = [sys.executable, str(SCRIPT), *command, "--seed", "7", "--chat_template", "none"]
        process = subprocess.Popen([*args, *flags], stderr=subprocess.PIPE, text=True, env=environ)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=_PATIENCE_S)
    return process.returncode, stderr


def test_the_environment_gives_the_rank() -> None:
    rank = rank_of(TORCHRUN, parent_pid=1)
    assert (rank.index, rank.count, rank.local_index, rank.local_count) == (3, 4, 1, 2)
    assert rank_of({}, parent_pid=1) == rank_of({"WORLD_SIZE": "1"}, parent_pid=1) == ALONE


def test_each_launch_has_its_own_name() -> None:
    one = {"WORLD_SIZE": "2", "RANK": "0"}
    other = {"WORLD_SIZE": "2", "RANK": "1"}
    assert rank_of(one, 5).launch == rank_of(other, 5).launch
    assert rank_of(one, 5).launch != rank_of(one, 6).launch
    assert rank_of(one, 5).launch != rank_of(one | {"TORCHELASTIC_RESTART_COUNT": "1"}, 5).launch
    # On several machines the launchers differ, and the run's id does not.
    assert rank_of(TORCHRUN, 5).launch == rank_of(TORCHRUN, 6).launch


@pytest.mark.parametrize("wrong", [{"RANK": ""}, {"RANK": "4"}, {"LOCAL_RANK": "x"}])
def test_an_impossible_rank_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="RANK"):
        rank_of(TORCHRUN | wrong, parent_pid=1)


def test_each_rank_has_its_own_gpu() -> None:
    rank = Rank(3, 4, local_index=1, local_count=2)
    (spec,) = plan_local_replicas(SETTINGS, {"CUDA_VISIBLE_DEVICES": "2,5"}, rank)
    assert spec.gpu == "5"


SRUN = {"SLURM_GPUS_PER_TASK": "1", "SLURM_STEP_ID": "0"}
UNDER_TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "local_index", "gpus"),
    [
        # Each task sees one GPU, by its own number or, in a control group, always as number 0.
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0"}, 1, ["0"]),
        (SRUN | {"CUDA_VISIBLE_DEVICES": "3"}, 3, ["3"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-uuid"}, 1, ["GPU-uuid"]),
        ({"CUDA_VISIBLE_DEVICES": "1", "LOCAL_WORLD_SIZE": "2"}, 1, ["1"]),
        # Each task sees two.
        ({"SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, 3, ["0", "1"]),
        (
            {"SLURM_GPUS_PER_TASK": "a100:2", "CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"},
            3,
            ["MIG-a", "MIG-b"],
        ),
        # Slurm counts one for each task, and binds none: all tasks see all.
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3, ["3"]),
        (SRUN | {"ROCR_VISIBLE_DEVICES": "5"}, 3, ["5"]),
        # A task without a GPU.
        (SRUN | {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 3, [None]),
        # All tasks see all.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3, ["3"]),
        (UNDER_TORCHRUN | {"CUDA_VISIBLE_DEVICES": "2,5"}, 1, ["5"]),
    ],
)
def test_a_process_uses_the_gpus_that_are_its_own(
    environ: dict[str, str], local_index: int, gpus: list[str | None]
) -> None:
    # Without LOCAL_WORLD_SIZE, all processes of the run count as local.
    rank = Rank(local_index, 8, local_index, local_count=2 if "LOCAL_WORLD_SIZE" in environ else 8)
    assert [spec.gpu for spec in plan_local_replicas(SETTINGS, environ, rank)] == gpus


@pytest.mark.parametrize(
    "environ", [{"WORLD_SIZE": "4", "RANK": "3"}, SRUN | {"LOCAL_RANK": "3"}], ids=["pods", "srun"]
)
def test_the_only_gpu_of_a_container_is_its_processs_own(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variable restricts the GPUs: the container does, and the driver lists one."""
    monkeypatch.setattr("latentwire_batch.ranks.gpus._listed_by_driver", lambda: ["0"])
    (spec,) = plan_local_replicas(SETTINGS, environ, Rank(3, 4, 3, 4))
    assert spec.gpu == "0"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (UNDER_TORCHRUN | {"CUDA_VISIBLE_DEVICES": "2"}, "2 or more processes .* sees 1 GPU:"),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "LOCAL_WORLD_SIZE": "4"}, "4 or more .* sees 2 GPUs:"),
    ],
)
def test_processes_that_would_share_a_gpu_are_refused(environ: dict[str, str], words: str) -> None:
    local_count = int(environ["LOCAL_WORLD_SIZE"])
    with pytest.raises(UsageError, match=f"{words} .*srun --gpus-per-task=1.* --device cpu"):
        plan_local_replicas(SETTINGS, environ, Rank(1, 4, 1, local_count))


def test_tasks_of_slurm_on_several_machines_are_one_launch() -> None:
    srun = {"WORLD_SIZE": "4", "RANK": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    srun |= {"SLURM_NNODES": "2", "SLURM_LOCALID": "1"}
    assert rank_of(srun, 5).launch == rank_of(srun | {"RANK": "2"}, 6).launch
    assert rank_of(srun, 5).launch != rank_of(srun | {"SLURM_STEP_ID": "1"}, 5).launch
    assert rank_of(srun, 5).local_index == 1


def test_ranks_share_out_the_cpus_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire_batch.replicas.local_plan._num_cores", lambda: 7)
    rank = Rank(0, 2, local_index=0, local_count=2)
    (spec,) = plan_local_replicas(SETTINGS, {"CUDA_VISIBLE_DEVICES": ""}, rank)
    assert spec.command[-2:] == ("--threads", "3")
    given = SETTINGS.model_copy(update={"threads": 6})
    (spec,) = plan_local_replicas(given, {"CUDA_VISIBLE_DEVICES": ""}, rank)
    assert spec.command[-2:] == ("--threads", "6")


@pytest.mark.slow
def test_two_ranks_make_one_dataset_in_input_order(
    start: Start, stub: StubReplica, other_stub: StubReplica, output: Path, tasks: Path
) -> None:
    ranks = [start(0, stub), start(1, other_stub)]
    assert [ended(process)[0] for process in ranks] == [0, 0]
    assert_complete(output, tasks_of(tasks))
    assert sorted(map(str, stub.received_ids())) == sorted(f"t{i}" for i in range(0, 40, 2))
    assert sorted(map(str, other_stub.received_ids())) == sorted(f"t{i}" for i in range(1, 40, 2))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_rank_dies_the_other_reports_it_and_a_rerun_resumes(
    start: Start, stub: StubReplica, other_stub: StubReplica, output: Path, tasks: Path, lost: int
) -> None:
    stubs = [stub, other_stub]
    for replica in stubs:
        replica.stall_after = 6
    ranks = [start(0, stub), start(1, other_stub)]
    for replica in stubs:
        assert replica.stalled.wait(_PATIENCE_S)
    ranks[lost].kill()
    status, stderr = ended(ranks[1 - lost])
    assert status == 1
    assert f"rank {lost} ended before its rows were done" in stderr
    answered = {*other_stub.answered, *stub.answered}
    for replica in stubs:
        replica.resume()
        replica.received.clear()
    ranks = [start(0, stub), start(1, other_stub)]
    assert [ended(process)[0] for process in ranks] == [0, 0]
    assert_complete(output, tasks_of(tasks))
    # Only the answers to the two rows that each rank had in flight may be lost.
    assert len(answered & {*stub.received_ids(), *other_stub.received_ids()}) <= 4 < len(answered)


@pytest.mark.slow
def test_one_process_resumes_the_work_of_two(
    start: Start,
    collect: Collect,
    stub: StubReplica,
    other_stub: StubReplica,
    output: Path,
    tasks: Path,
) -> None:
    other_stub.stall_after = 6
    ranks = [start(0, stub), start(1, other_stub)]
    assert other_stub.stalled.wait(_PATIENCE_S)
    stub.wait_answered(20)
    ranks[1].kill()
    assert ended(ranks[0])[0] == 1
    other_stub.resume()
    other_stub.received.clear()
    assert collect("--chat-template", "none", replicas=[other_stub]).status == 0
    assert 0 < len(other_stub.received) < 20
    assert_complete(output, tasks_of(tasks))


@pytest.mark.slow
def test_other_settings_are_refused_by_every_rank(
    start: Start, stub: StubReplica, output: Path
) -> None:
    assert [ended(p)[0] for p in (start(0, stub), start(1, stub))] == [0, 0]
    answered = len(stub.answered)
    for process in [start(0, stub), start(1, stub)]:
        status, stderr = ended(process)
        assert status == 0
        assert "all 40 rows are already collected" in stderr
    for process in [start(0, stub, "--top_k", "3"), start(1, stub, "--top_k", "3")]:
        status, stderr = ended(process)
        assert status == 2
        assert "sampling.top_k was 0, now 3" in stderr
    assert len(stub.answered) == answered
    assert not (output / ".partial").exists()


def parities(task_ids: list[str | None]) -> set[int]:
    return {int(str(task_id).removeprefix("t")) % 2 for task_id in task_ids}


@pytest.mark.slow
def test_terminated_ranks_keep_finished_rows(
    start: Start, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.stall_after = 4
    ranks = [start(0, stub), start(1, stub)]
    # Both are sending rows: the signal just kills one that is starting up, or is done.
    with stub.lock:
        assert stub.lock.wait_for(
            lambda: parities(stub.received_ids()) == {0, 1}, timeout=_PATIENCE_S
        )
    for process in ranks:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert any("finishing in-flight rows" in line for line in process.stderr)
    stub.resume()
    assert {ended(process)[0] for process in ranks} <= {1, 130}
    assert [ended(process)[0] for process in (start(0, stub), start(1, stub))] == [0, 0]
    assert_complete(output, tasks_of(tasks))


@pytest.mark.slow
def test_torchrun_starts_the_script(
    stub: StubReplica, command: list[str], output: Path, tasks: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environ = os.environ | {"LATENTWIRE_COLLECT_REPLICA": stub.base_url}
    # Not at the launcher's usual port, which other processes of this machine may have.
    launch = [*launcher, "--nproc_per_node=2", str(SCRIPT), *command, "--seed", "7"]
    done = subprocess.run(launch, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all 40 rows are written" in done.stderr
    assert_complete(output, tasks_of(tasks))
