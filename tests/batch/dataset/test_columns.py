"""`--columns`, and what the files themselves say about how they were made."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from latentwire.storage import DECLARATION_KEY
from latentwire_batch.dataset.files import locate
from latentwire_batch.dataset.reader import stored_declaration
from latentwire_batch.dataset.schema import EXTRA_COLUMNS
from latentwire_batch.dispatch.seeds import row_seed
from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_answers import Behaviour, num_tokens
from support.batch.stub_replica import StubReplica

CLASSIC = ["task", "task_id", "plan", "hidden_state"]
ALL = [column.name for column in EXTRA_COLUMNS]


def expected(tasks: Path, names: list[str]) -> list[dict[str, object]]:
    rows = []
    for index, (_, task) in enumerate(tasks_of(tasks)):
        seed = row_seed(7, index)
        count = num_tokens(task, seed, 12)
        values: dict[str, object] = {
            "token_ids": list(range(count)),
            "finish_reason": "stop",
            "seed": seed,
            "prompt_tokens": 5,
            "completion_tokens": count,
        }
        rows.append({name: values[name] for name in names})
    return rows


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--columns", "token_ids"], ["token_ids"]),
        (["--columns", "seed,finish_reason"], ["finish_reason", "seed"]),
        (["--columns", "seed", "--columns", " token_ids , plan"], ["token_ids", "seed"]),
        (["--columns", ",".join(ALL)], ALL),
    ],
)
def test_columns_are_added_to_both_files(
    flags: list[str],
    names: list[str],
    collect: Collect,
    stub: StubReplica,
    tasks: Path,
    output: Path,
) -> None:
    assert collect(*flags, replicas=[stub]).status == 0
    table = pq.read_table(output / "data.parquet")
    saved = datasets.load_from_disk(str(output / "hf_dataset"))
    assert table.schema.names == saved.column_names == CLASSIC + names
    assert table.select(names).to_pylist() == expected(tasks, names)
    assert saved.select_columns(names).to_list() == expected(tasks, names)
    assert table.cast(saved.data.schema).equals(saved.data.table)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["settings"]["columns"] == names
    card = (output / "README.md").read_text()
    features = yaml.safe_load(card.split("---")[1])["dataset_info"]["features"]
    assert [feature["name"] for feature in features] == CLASSIC + names
    assert all(f"| `{name}` |" in card for name in names)


@pytest.mark.parametrize("name", ["tokens", "Seed", "hidden_states"])
def test_an_unknown_column_is_refused_with_the_known_ones(
    name: str, collect: Collect, output: Path
) -> None:
    ended = collect("--columns", f"seed,{name}")
    assert ended.status == 2
    assert f"'{name}' is not one of token_ids, finish_reason, seed" in ended.stderr
    assert not output.exists()


def test_columns_survive_an_interruption_and_a_retry(
    collect: Collect, tasks: Path, output: Path
) -> None:
    flags = ["--columns", "token_ids,seed"]
    with StubReplica(Behaviour(die_after=9)) as dying:
        assert collect(*flags, "--replica-timeout", "0.2", replicas=[dying]).status == 1
    bad = tasks_of(tasks)[3][1]
    with StubReplica(Behaviour(task_faults={bad: [422]})) as stub:
        ended = collect("--columns", "seed", replicas=[stub])
        assert "columns was ['token_ids', 'seed'], now ['seed']" in ended.stderr
        assert ended.status == 2
        collect(*flags, replicas=[stub])
        assert collect(*flags, "--retry-failed", replicas=[stub]).status in (0, 3)
        assert collect(*flags, replicas=[stub]).status == 0
    rows = pq.read_table(output / "data.parquet", columns=["token_ids", "seed"]).to_pylist()
    assert rows == expected(tasks, ["token_ids", "seed"])


def test_the_default_stays_the_classic_columns(
    collect: Collect, stub: StubReplica, tasks: Path, output: Path
) -> None:
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))
    assert "columns was [], now ['seed']" in collect("--columns", "seed").stderr


@pytest.mark.parametrize("part", ["data.parquet", "hf_dataset", ""])
def test_the_metadata_of_a_single_file_declares_its_latents(
    part: str, collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect("--k", "3", replicas=[stub]).status == 0
    declared = stored_declaration(locate(output / part))
    manifest = json.loads((output / "manifest.json").read_text())
    names = ["format", "model", "latent", "settings", "versions"]
    assert declared == {name: manifest[name] for name in names}
    assert declared["latent"] == {"layer": "last", "normed": True, "alignment": "predicts"}
    assert declared["settings"]["k"] == 3


@pytest.mark.parametrize("value", [b"{", b"[1]", b"\xff", b"[" * 10_000, b""])
def test_metadata_of_other_tools_is_ignored(value: bytes, tmp_path: Path) -> None:
    table = pa.table({"task": ["a"]}).replace_schema_metadata({DECLARATION_KEY: value})
    pq.write_table(table, tmp_path / "d.parquet")
    assert stored_declaration(locate(tmp_path / "d.parquet")) is None


def test_the_place_of_the_task_is_in_manifest_and_card(
    collect: Collect, stub: StubReplica, tasks: Path, output: Path
) -> None:
    turns = [{"role": "user", "content": "tidy up"}]
    tasks.write_text(json.dumps([{"messages": turns}] * 2))
    assert collect("--conversations-index", "0", replicas=[stub]).status == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["settings"]["input"] == {"conversations_index": 0, "id_field": "id"}
    assert "| conversations_index | `0` |" in (output / "README.md").read_text()
