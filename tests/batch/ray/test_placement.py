"""Where replicas on Ray go, and what is said when they do not fit."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest

from latentwire_batch.__main__ import main
from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import ReplicasLostError, UsageError
from latentwire_batch.ray import autoscaler, cluster
from latentwire_batch.ray.cluster import Placement, attached, place
from latentwire_batch.ray.stream import block_rows, blocks_in_flight


def settings(**given: Any) -> CollectSettings:
    return CollectSettings(dataset=("x",), output_dir=Path("out"), on="ray", **given)


def _not_asked(_: Placement) -> bool:
    raise AssertionError("the replicas fit")


def test_a_closed_standard_error_does_not_keep_ray_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = os.open(os.devnull, os.O_WRONLY)
    # A number that no other thread is given in the meantime: those are the lowest that are free.
    closed = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 900)
    os.close(opened)
    os.close(closed)
    monkeypatch.setattr(cluster, "_STDERR", closed)
    with cluster._without_notice_of_log_level(), pytest.raises(OSError, match="Bad file"):
        os.fstat(closed)


@pytest.mark.parametrize(
    ("given", "cpus", "gpus", "placement"),
    [
        ({}, 12, 8, Placement(8, 1, 1)),
        ({"replicas": 2}, 12, 8, Placement(2, 1, 1)),
        ({"gpus_per_replica": 3}, 12, 8, Placement(2, 1, 3)),
        ({"engine": "vllm", "tensor_parallel_size": 4}, 12, 8, Placement(2, 1, 4)),
        ({"device": "cpu"}, 4, 0, Placement(1, 1, 0)),
        ({"gpus_per_replica": 0, "replicas": 2, "threads": 3}, 8, 4, Placement(2, 3, 0)),
    ],
)
def test_replicas_take_what_the_cluster_has(
    given: dict[str, Any], cpus: int, gpus: int, placement: Placement
) -> None:
    said: list[str] = []
    made = place(settings(**given), {"CPU": cpus, "GPU": gpus}, _not_asked, said.append)
    assert (made, said) == (placement, [])


@pytest.mark.parametrize(
    ("given", "cpus", "gpus", "message"),
    [
        ({}, 12, 0, r"--gpus-per-replica: a replica needs 1 GPU, and the Ray cluster has 0"),
        ({"replicas": 9}, 20, 8, r"--replicas: 9 need 9 GPUs, .* has 8; --replicas 8 fits$"),
        # As many CPUs as replicas: Ray Data's own tasks would never run.
        ({"replicas": 2, "device": "cpu"}, 3, 0, r"4 logical CPUs, .* has 3; --replicas 1 fits$"),
        ({"replicas": 9}, 5, 8, r"--replicas: 9 need 9 GPUs, .* has 8; --replicas 3 fits$"),
        ({"device": "cpu"}, 2, 0, r"3 logical CPUs, .* has 2; start more nodes$"),
        (
            {"device": "cpu", "threads": 4},
            4,
            0,
            r"has 4; give fewer --threads, or start more nodes",
        ),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(
    given: dict[str, Any], cpus: int, gpus: int, message: str
) -> None:
    resources, said = {"CPU": float(cpus), "GPU": float(gpus)}, list[str]()
    with pytest.raises(UsageError, match=message):
        place(settings(**given), resources, lambda _: False, said.append)
    assert said == []
    grown = place(settings(**given), resources, lambda _: True, said.append)
    assert grown.replicas == given.get("replicas", 1)
    assert len(said) == 1
    assert "wait until its autoscaler has added nodes" in said[0]


def test_the_autoscaler_learns_of_the_replicas_and_of_two_more_cpus() -> None:
    asked: list[Placement] = []
    given = settings(replicas=2, gpus_per_replica=2, threads=3)

    def can_grow(placement: Placement) -> bool:
        asked.append(placement)
        return True

    said: list[str] = []
    place(given, {"CPU": 2.0}, can_grow, said.append)
    (placement,) = asked
    assert placement.bundles == [{"CPU": 3, "GPU": 2}] * 2 + [{"CPU": 1}] * 2
    assert "for 8 logical CPUs and 4 GPUs in all" in said[0]


@pytest.mark.parametrize(
    ("report", "is_managed", "answer"),
    [
        ({}, False, None),
        ({"node_type_mapping": {"h": "node_7f"}}, False, None),
        ({"node_type_mapping": {"h": "ray.head.default"}}, True, None),
        ({"node_type_mapping": {"h": "head"}, "pending_launches": {"gpu": 2}}, True, True),
        ({"node_type_mapping": {"h": "head"}, "pending_nodes": [["h", "gpu", "up"]]}, True, True),
    ],
)
def test_a_report_of_the_autoscaler_is_understood(
    report: dict[str, Any], is_managed: bool, answer: bool | None
) -> None:
    assert autoscaler._is_managed(report) == is_managed
    assert autoscaler._first_answer(report) is answer


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--replicas", "2"], "--replicas: needs --on ray"),
        (["--ray-address", "auto"], "--ray-address: needs --on ray"),
        (["--on", "ray", "--replica", "http://x"], "--replica: cannot be used with --on ray"),
        (["--on", "ray", "--ray-address", "ray://h:1"], "--ray-address: collect runs on a machine"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"task": "t"}\n')
    args = ["--dataset", str(tasks), "--output-dir", str(tmp_path / "out"), *flags]
    assert main(args) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_rows", "num_slots", "expected"),
    [(3, 16, 1), (60, 4, 4), (10_000, 16, 32), (1_000_000, 512, 122), (10_000_000, 512, 256)],
)
def test_blocks_are_small_unless_there_were_too_many_of_them(
    num_rows: int, num_slots: int, expected: int
) -> None:
    assert block_rows(num_rows, num_slots) == expected


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, "0"),
        ({"ray_address": "local"}, {}, "0"),
        ({}, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}, "1"),
        ({"ray_address": "auto"}, {}, None),
        ({}, {"RAY_ADDRESS": "192.0.2.1:6379"}, None),
    ],
)
def test_ray_that_collect_starts_is_on_loopback(
    given: dict[str, Any], environment: dict[str, str], expected: str | None
) -> None:
    """Ray reads the variable when it is imported; it decides whether a node is 127.0.0.1."""
    modules = {"ray": MagicMock(), "ray.data": MagicMock()}
    with patch.dict(sys.modules, modules), patch.dict(os.environ, environment, clear=True):
        with attached(settings(**given)):
            pass
        assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == expected


@pytest.mark.parametrize("address", ["local", "auto"])
def test_ray_takes_no_signal_away_from_collect(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = MagicMock()
    before = signal.getsignal(signal.SIGTERM)
    ray.init.side_effect = lambda **_options: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    with patch.dict(os.environ), attached(settings(ray_address=address)):
        ray.init.assert_called_once()
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("num_failures", [1, 3])
def test_ray_that_starts_slowly_is_started_again(num_failures: int) -> None:
    ray = MagicMock()
    slow = Exception("The current node timed out during startup.")
    ray.init.side_effect = [slow] * num_failures + [None]
    with patch.dict(sys.modules, {"ray": ray, "ray.data": ray.data}), patch.dict(os.environ):
        os.environ.pop("RAY_ADDRESS", None)
        if num_failures == 1:
            with attached(settings()) as module:
                assert module is ray
        else:
            with pytest.raises(ReplicasLostError, match="too busy"), attached(settings()):
                pass
    # Each time, the processes that did start are ended.
    assert (ray.init.call_count, ray.shutdown.call_count) == (
        min(num_failures + 1, 3),
        num_failures + (num_failures == 1),
    )


@pytest.mark.parametrize("num_slots", [1, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("num_rows", [3, 1000, 100_000, 5_000_000])
def test_a_block_that_ends_leaves_no_slot_empty(num_slots: int, num_rows: int) -> None:
    rows = block_rows(num_rows, 2 * num_slots)
    assert (blocks_in_flight(num_slots, rows) - 1) * rows >= num_slots
