import pytest

from latentwire_batch.errors import UsageError
from latentwire_batch.ranks.rank import ALONE, Rank
from latentwire_batch.workers.count import num_workers


@pytest.mark.parametrize(
    ("wanted", "num_replicas", "num_cores", "expected"),
    [
        ("auto", 0, 64, 1),
        ("auto", 1, 64, 1),
        ("auto", 15, 64, 1),
        ("auto", 16, 64, 2),
        ("auto", 64, 64, 8),
        ("auto", 64, 8, 2),
        ("auto", 64, 1, 1),
        (1, 0, 2, 1),
        (3, 1, 2, 3),
    ],
)
def test_number_of_workers(
    wanted: int | str, num_replicas: int, num_cores: int, expected: int
) -> None:
    addresses = [f"http://replica{i}:8000" for i in range(num_replicas)]
    assert num_workers(wanted, addresses, num_cores) == expected  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize(("num_tls", "expected"), [(5, 1), (6, 2), (16, 6)])
def test_replicas_behind_tls_need_more_workers(num_tls: int, expected: int) -> None:
    addresses = [f"HTTPS://replica{i}" for i in range(num_tls)]
    assert num_workers("auto", addresses, 64) == expected


def test_workers_need_given_replicas() -> None:
    with pytest.raises(UsageError, match="--workers"):
        num_workers(2, [], 64)


@pytest.mark.parametrize("num_slots", [1, 3, 8, 17])
def test_workers_divide_the_slots_of_a_replica(num_slots: int) -> None:
    shares = [Rank.of_worker(index, 3, "a").slots_of(num_slots) for index in range(3)]
    assert sum(shares) == max(3, num_slots)
    assert max(shares) - min(shares) <= 1
    assert ALONE.slots_of(num_slots) == num_slots


@pytest.mark.parametrize(("num_cores", "most"), [(1, 16), (2, 16), (8, 32)])
def test_more_processes_than_cores_can_run_are_refused(num_cores: int, most: int) -> None:
    addresses = ["http://127.0.0.1:1"]
    assert num_workers(most, addresses, num_cores) == most
    with pytest.raises(UsageError, match=f"--workers: must be at most {most}"):
        num_workers(most + 1, addresses, num_cores)
