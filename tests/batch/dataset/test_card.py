from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from latentwire_batch.dataset.card import build_card
from latentwire_batch.dataset.schema import CLASSIC_SCHEMA
from support.batch.collecting import Collect
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    fields: dict[str, Any] = yaml.safe_load(head)
    return fields


def test_the_card_names_model_settings_features_and_counts(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect("--temperature", "0.5", "--k", "3", replicas=[stub])
    card = (output / "README.md").read_text()
    assert [f["name"] for f in front_matter(card)["dataset_info"]["features"]] == [
        "task",
        "task_id",
        "plan",
        "hidden_state",
    ]
    for line in ('| model | `"stub"` |', "| temperature | `0.5` |", "| finished | `40` |"):
        assert line in card
    assert "At most the first 3 rows are kept." in card


def test_the_hub_library_reads_the_output_by_its_card(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    collect(replicas=[stub])
    loaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    saved = datasets.load_from_disk(str(output / "hf_dataset"))
    assert loaded["train"].data.table.equals(saved.data.table)
    assert saved.features["hidden_state"] == datasets.Sequence(
        datasets.Sequence(datasets.Value("float32"))
    )


def test_no_file_tells_the_path_host_or_user(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    stderr = collect(replicas=[stub]).stderr
    texts = [
        stderr,
        *(path.read_text() for path in (output / "README.md", output / "manifest.json")),
    ]
    raw = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    for secret in (str(tmp_path), str(stub.port), socket.gethostname()):
        assert all(secret not in text for text in texts)
        if secret != str(stub.port):
            assert all(secret.encode() not in data for data in raw)
    assert f"/{getpass.getuser()}" not in "".join(texts)


def test_a_readme_of_the_user_is_kept(collect: Collect, stub: StubReplica, output: Path) -> None:
    output.mkdir()
    (output / "README.md").write_text("# Mine\n")
    assert collect(replicas=[stub]).status == 0
    assert collect("--overwrite", "--top-k", "3", replicas=[stub]).status == 0
    assert (output / "README.md").read_text() == "# Mine\n"


def test_a_rerun_with_other_settings_rewrites_the_card(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect(replicas=[stub])
    collect("--overwrite", "--top-k", "3", replicas=[stub])
    assert "| top_k | `3` |" in (output / "README.md").read_text()


@pytest.mark.parametrize("name", ["a: b", "a`b|c", 'x"y', "two\nlines"])
def test_no_name_breaks_the_markup(collect: Collect, output: Path, name: str) -> None:
    with StubReplica(Behaviour()) as stub:
        collect("--limit", "1", replicas=[stub])
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["model"]["model"] = name
    card = build_card(manifest, CLASSIC_SCHEMA)
    assert front_matter(card)["pretty_name"] == f"Latents of {name}"
    table = card[card.index("## How it was made") : card.index("## Counts")].splitlines()[2:]
    assert all(line.replace("\\|", "").count("|") == 3 for line in table if line)
