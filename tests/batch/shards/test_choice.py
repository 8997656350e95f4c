"""Which shard a run collects, by its flag and the variables of Slurm and Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from latentwire_batch.errors import UsageError
from latentwire_batch.shards.choice import choose_shard
from latentwire_batch.shards.shard import Shard


def slurm(task: object, count: object, first: object = 0, last: object = None) -> dict[str, str]:
    last = int(str(first)) + int(str(count)) - 1 if last is None else last
    names = ("ID", "COUNT", "MIN", "MAX")
    values = map(str, (task, count, first, last))
    return {f"SLURM_ARRAY_TASK_{name}": text for name, text in zip(names, values, strict=True)}


POD = {"JOB_COMPLETION_INDEX": "5"}


@pytest.mark.parametrize(
    ("given", "environ", "shard", "words"),
    [
        (None, {}, None, None),
        ("3/16", {}, Shard(3, 16), "--shard"),
        (" 3/16 ", slurm(4, 8), Shard(3, 16), "given by --shard"),
        ("0/1", {}, Shard(0, 1), "--shard"),
        ("none", slurm(4, 8), None, "all rows, not a shard"),
        ("NONE", {}, None, "all rows"),
        (None, slurm(4, 16), Shard(4, 16), "SLURM_ARRAY_TASK_ID is 4, in an array of 16 tasks; "),
        # sbatch --array=1-16
        (None, slurm(1, 16, 1), Shard(0, 16), "that begins at 1"),
        (None, slurm(16, 16, 1), Shard(15, 16), "--shard none collects all rows"),
        # sbatch --array=0-30:2
        (
            None,
            slurm(6, 16, 0, 30) | {"SLURM_ARRAY_TASK_STEP": "2"},
            Shard(3, 16),
            "SLURM_ARRAY_TASK_ID is 6",
        ),
        (None, slurm(0, 1), Shard(0, 1), "an array of 1 task;"),
        # Some tasks of an array run again.
        ("/16", slurm(7, 2, 3, 7), Shard(7, 16), "SLURM_ARRAY_TASK_ID is 7, and --shard is /16"),
        ("/16", slurm(3, 1, 3), Shard(3, 16), "SLURM_ARRAY_TASK_ID is 3"),
        ("/16", {"SLURM_ARRAY_TASK_ID": "3"}, Shard(3, 16), "SLURM_ARRAY_TASK_ID is 3"),
        ("/16", POD, Shard(5, 16), "JOB_COMPLETION_INDEX is 5"),
        ("/16", POD | slurm(5, 16), Shard(5, 16), "is 5"),
        (None, POD, None, "all rows, although JOB_COMPLETION_INDEX is set: --shard /N"),
        ("2/8", POD, Shard(2, 8), "given by --shard"),
        # A variable without a value is not set.
        (None, {"SLURM_ARRAY_TASK_ID": ""}, None, None),
    ],
)
def test_the_shard_and_why(
    given: str | None, environ: Mapping[str, str], shard: Shard | None, words: str | None
) -> None:
    choice = choose_shard(given, environ)
    assert choice.shard == shard
    assert (choice.notice is None) == (words is None)
    assert (words or "") in (choice.notice or "")
    if shard is not None:
        assert str(choice.notice).startswith(f"shard {shard}: ")


@pytest.mark.parametrize(
    ("given", "environ", "words"),
    [
        ("3/0", {}, "--shard: the number of shards must be 1 to 99999, not 0"),
        ("0/100000", {}, "--shard: the number of shards"),
        ("17/16", {}, "--shard: there is no shard 17/16: .* the last of 16 is 15/16"),
        ("16/16", {}, "--shard: there is no shard 16/16: shards are numbered from 0"),
        ("3", {}, "--shard: must be like 3/16"),
        ("-1/16", {}, "--shard: must be like"),
        ("3/-16", {}, "--shard: must be like"),
        ("3 of 16", {}, "--shard: must be like"),
        ("٣/16", {}, "--shard: must be like"),
        ("3/16/2", {}, "--shard: must be like"),
        ("all", {}, "--shard: must be like .* or none"),
        ("/16", {}, "--shard: /16 takes .* neither is set; --shard 0/16"),
        ("/0", POD, "--shard: the number of shards"),
        ("/5", POD, "JOB_COMPLETION_INDEX: goes up to 5, .* completions to 5"),
        # Only task 16 would notice that shard 0 is left out.
        ("/16", slurm(1, 16, 1), r"SLURM_ARRAY_TASK_ID: goes up to 16, .* --array=0-15"),
        ("/16", slurm("x", 16), "SLURM_ARRAY_TASK_ID: must be a whole number"),
        ("/16", POD | slurm(4, 16), "--shard: SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX differ"),
        (None, slurm(3, 1, 3), "SLURM_ARRAY_TASK_ID: this array of 1 task from 3 to 3 .*/N"),
        (None, slurm(4, 3, 3), "SLURM_ARRAY_TASK_ID: this array of 3 tasks from 3 to 5"),
        (None, slurm(7, 2, 0, 7), "SLURM_ARRAY_TASK_ID: this array"),
        (None, slurm(20, 16), "SLURM_ARRAY_TASK_ID: this array"),
        (None, {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_ID: .*--shard none"),
        (None, slurm("-1", 16), "SLURM_ARRAY_TASK_ID: must be a whole number"),
    ],
)
def test_what_names_no_shard_is_refused(
    given: str | None, environ: Mapping[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=f"^{words}") as raised:
        choose_shard(given, environ)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("num_rows", [0, 1, 6, 7, 40])
def test_each_row_is_in_one_shard(count: int, num_rows: int) -> None:
    shards = [Shard(index, count) for index in range(count)]
    assert sum(shard.num_rows(num_rows) for shard in shards) == num_rows
    for row in range(num_rows):
        assert [shard for shard in shards if shard.holds(row)] == [Shard(row % count, count)]
        assert [shard for shard in shards if shard.mask(num_rows)[row]] == [
            Shard(row % count, count)
        ]
    assert all(Shard.of_folder(shard.folder) == shard for shard in shards)
