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
