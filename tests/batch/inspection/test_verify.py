"""`latentwire inspect --verify`: the files of a dataset against the digests in its manifest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from latentwire_batch.inspection.command import main
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica


@pytest.fixture
def made(collect: Collect, stub: StubReplica, output: Path) -> Path:
    assert collect(replicas=[stub]).status == 0
    return output


def test_files_that_are_not_those_that_were_written_are_found(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(made), "--verify"]) == 0
    assert re.search(r"checksums +2 files as written", capsys.readouterr().out)
    # Bytes that no reader of the rows looks at.
    (arrow,) = made.glob("hf_dataset/*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-1] + b"\1")
    assert main([str(made)]) == 0
    capsys.readouterr()
    assert main([str(made), "--verify"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"hf_dataset/{arrow.name} has changed since it was written" in shown
    manifest = json.loads((made / "manifest.json").read_text())
    digest = manifest["files"].popitem()[1]
    for name in ("", "/dev/zero", "../x.parquet"):
        files = {name: digest} if name else {}
        reason = "its manifest.json is damaged" if name else "has no manifest.json with checksums"
        (made / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        assert main([str(made), "--verify"]) == 2
        assert f"PATH: {reason}" in capsys.readouterr().err


def test_a_difference_is_named_where_the_rows_cannot_be_read(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made / "data.parquet"
    content = bytearray(data.read_bytes())
    content[-20] ^= 1
    data.write_bytes(content)
    assert main([str(made), "--verify"]) == 1
    assert "PATH: data.parquet has changed since it was written" in capsys.readouterr().err
    data.unlink()
    shutil.rmtree(made / "hf_dataset")
    assert main([str(made), "--verify"]) == 1
    shown = capsys.readouterr().err
    assert "PATH: data.parquet is missing" in shown
    assert re.search(r"PATH: hf_dataset/data-\S+\.arrow is missing", shown)


def test_one_file_or_folder_of_a_dataset_is_compared_by_itself(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = output.with_name("hub")
    small = ("--layout", "hub", "--limit", "3", "--max-shard-size", "600")
    assert collect("--limit", "3", replicas=[stub]).status == 0
    assert collect(*small, "--output-dir", str(hub), replicas=[stub]).status == 0
    first, second, *_ = sorted((hub / "data").iterdir())
    arrow = next(output.glob("hf_dataset/*.arrow"))
    # All of these are sound; what is next to them is not.
    for damaged in (second, arrow):
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    (first.parent / "alone").mkdir()
    alone = first.rename(first.parent / "alone" / first.name)
    shutil.copy(alone, first)
    monkeypatch.chdir(first.parent)
    capsys.readouterr()
    for given, status, shown in (
        (first, 0, "1 file as written"),
        (Path(first.name), 0, "1 file as written"),
        (second, 1, "has changed since it was written"),
        (hub / "data", 1, f"PATH: data/{second.name} has changed since it was written"),
        (output / "data.parquet", 0, "1 file as written"),
        (output / "hf_dataset", 1, "hf_dataset/data-00000-of-00001.arrow has changed"),
        (output, 1, "1 of 2 files differ"),
        # Its folder has no manifest.
        (alone, 2, "PATH: has no manifest.json with checksums"),
    ):
        assert main([str(given), "--verify"]) == status, given
        captured = capsys.readouterr()
        assert shown in " ".join((captured.out + captured.err).split()), given
    shutil.copy(output / "manifest.json", alone.parent)
    assert main([str(alone), "--verify"]) == 2
    shown = f"PATH: the manifest.json of its dataset does not name {alone.name}"
    assert shown in capsys.readouterr().err
