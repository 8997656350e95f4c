"""What `latentwire merge` says of places that hold no shards, or a shard twice."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from latentwire_batch.locations import Folder, place_of
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica

Merge = Any


def test_what_is_no_folder_is_named_as_what_it_is(merge: Merge, tmp_path: Path) -> None:
    file, folder_of_file = tmp_path / "manifest.json", tmp_path / "manifest.json" / "x"
    file.write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    is_file = "is a file; merge takes folders of shards, or folders that hold them"
    cases = {
        file: is_file,
        folder_of_file: "no such directory",
        tmp_path / "none": "no such directory",
        tmp_path / "pipe": "is not a directory",
        tmp_path / "link": "is a link to a directory that does not exist",
        tmp_path / ("n" * 300): "cannot be read: File name too long",
        place_of("memory://merge-of-a-file/m.json"): is_file,
    }
    Folder("memory://merge-of-a-file").write("m.json", b"{}")
    for source, words in cases.items():
        ended = merge(sources=(source,))
        assert (ended.status, len(ended.stderr.splitlines())) == (2, 1)
        assert ended.stderr.endswith(f"/{source.name}: {words}\n")
        assert str(tmp_path) not in ended.stderr


def test_what_is_no_shard_or_there_twice_is_refused(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert collect("--output-dir", str(whole), replicas=[stub]).status == 0
    assert collect("--shard", "1/2", replicas=[stub]).status == 0
    flags = ("--shard", "1/2", "--output-dir", str(other))
    assert collect(*flags, replicas=[stub]).status == 0
    folder = output / "shard-00001-of-00002"
    cases = {
        (whole,): "holds a dataset that is not a shard",
        (tmp_path,): "holds no shards",
        (Path("/dev"),): "merge: .../dev: holds no shards",
        (output, other): "shard 1/2 is there twice, in .*out/shard.* and .*other/shard",
        # One folder that is named twice is one.
        (output, folder): "shard 0/2 is missing",
    }
    for sources, words in cases.items():
        ended = merge(sources=sources)
        assert ended.status == 2
        assert len(ended.stderr.splitlines()) == 1
        assert re.search(words, ended.stderr), (words, ended.stderr)
        assert str(tmp_path) not in ended.stderr
    ended = merge("--compressor", "x")
    assert (ended.status, "unrecognized arguments" in ended.stderr) == (2, True)
