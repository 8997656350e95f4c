from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from latentwire_batch import collect_hidden_states, compressed_latent_collect
from latentwire_batch.config import CollectSettings
from latentwire_batch.replicas.local_plan import serve_command
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

BATCH = Path(__file__).parents[2] / "batch"
COMMANDS = [collect_hidden_states, compressed_latent_collect]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, stub: StubReplica) -> Iterator[None]:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LATENTWIRE_COLLECT_REPLICA", stub.base_url)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def manifest_of(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


def hidden_states(tasks: Path, output: Path, *flags: str) -> int:
    places = ["--dataset_path", str(tasks), "--output_dir", str(output)]
    return collect_hidden_states.main(["--model_name_or_path", "stub", *places, *flags])


def compressed(tasks: Path, output: Path, *flags: str) -> int:
    places = ["--dataset_path", str(tasks), "--output_dir", str(output)]
    return compressed_latent_collect.main(["--model_path", "stub", *places, *flags])


def flags_of(module: ModuleType) -> set[str]:
    return set(re.findall(r"--[a-z_]+", module._parser().format_usage()))


def test_the_flags_are_those_of_the_documented_command_lines() -> None:
    common = "--dataset_path --dataset_split --output_dir --temperature --max_new_tokens "
    common += "--task_field --conversations_index --id_field --torch_dtype --seed "
    common += "--trust_remote_code --disable_tqdm"
    of_hidden_states = "--model_name_or_path --dataset_name --load_from_disk --prompt_template "
    of_hidden_states += "--chat_template --top_p --top_k --do_sample --temp_dir --flush_every"
    assert flags_of(collect_hidden_states) == {*common.split(), *of_hidden_states.split()}
    assert flags_of(compressed_latent_collect) == {*common.split(), "--model_path", "--c"}


def test_a_classic_default_wins_over_the_environment_of_collect(
    tasks: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_TEMPERATURE", "0.1")
    monkeypatch.setenv("LATENTWIRE_COLLECT_TOP_K", "5")
    assert compressed(tasks, output) == 0
    sampling = manifest_of(output)["settings"]["sampling"]
    assert isinstance(sampling, dict)
    assert (sampling["temperature"], sampling["max_new_tokens"]) == (1.2, 1500)


def test_hidden_states_has_the_classic_defaults(tasks: Path, output: Path) -> None:
    assert hidden_states(tasks, output) == 0
    settings = manifest_of(output)["settings"]
    assert settings["sampling"] == {
        "max_new_tokens": 512,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "stop": [],
    }
    assert settings["prompt"]["chat_template"] == "none"
    assert settings["k"] is None


def test_hidden_states_applies_every_flag(tasks: Path, output: Path, tmp_path: Path) -> None:
    flags = "--max_new_tokens 9 --temperature 0.5 --top_p 0.8 --top_k 4 --do_sample false --seed 3"
    flags += " --torch_dtype fp32 --chat_template qwen --id_field nr --task_field task"
    flags += f" --flush_every 10 --disable_tqdm --temp_dir {tmp_path} --trust_remote_code true"
    assert hidden_states(tasks, output, *flags.split(), "--prompt_template", "Do {task}") == 0
    settings = manifest_of(output)["settings"]
    assert settings["sampling"] == {
        "max_new_tokens": 9,
        "do_sample": False,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 4,
        "stop": [],
    }
    assert settings["prompt"] == {"prompt_template": "Do {task}", "chat_template": "qwen"}
    assert settings["seed"] == 3
    assert pq.read_table(output / "data.parquet")["task_id"][7].as_py() == "7"


def test_the_dataset_equals_that_of_collect(tasks: Path, output: Path) -> None:
    assert hidden_states(tasks, output, "--seed", "7", "--max_new_tokens", "12") == 0
    assert_complete(output, tasks_of(tasks))


def test_compressed_keeps_the_first_hidden_rows(tasks: Path, output: Path) -> None:
    assert compressed(tasks, output, "--c", "3", "--seed", "7") == 0
    assert_complete(output, tasks_of(tasks), k=3, max_new_tokens=1500)
    assert manifest_of(output)["settings"]["sampling"]["temperature"] == 1.2


def test_conversations_are_read_when_the_task_field_is_empty(tmp_path: Path, output: Path) -> None:
    turns = [[{"from": "human", "value": f"{i}.{t}"} for t in range(4)] for i in range(5)]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([{"id": f"c{i}", "conversations": c} for i, c in enumerate(turns)]))
    assert hidden_states(path, output, "--task_field", "", "--conversations_index", "2") == 0
    rows = pq.read_table(output / "data.parquet")
    assert rows["task"].to_pylist() == [f"{i}.2" for i in range(5)]
    assert rows["task_id"].to_pylist() == [f"c{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task_field", ""], "--conversations_index is not given"),
        (["--task_field", "x", "--conversations_index", "2"], '--task_field ""'),
        (["--top_p", "2"], "--top_p: "),
        (["--do_sample", "maybe"], "'maybe' is neither true nor false"),
        (["--torch_dtype", "int8"], "--torch_dtype"),
        (["--load_from_disk"], "--dataset_path is not a directory"),
        (["--no_such_flag"], "--no_such_flag"),
    ],
)
def test_bad_usage_names_the_classic_flag(
    tasks: Path,
    output: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert hidden_states(tasks, output, *flags) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_one_split_of_a_saved_dataset_is_chosen(tmp_path: Path, output: Path) -> None:
    parts = {n: datasets.Dataset.from_dict({"task": [f"{n} task"]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    saved = tmp_path / "saved"
    assert hidden_states(saved, output, "--load_from_disk", "--dataset_split", "test") == 0
    assert pq.read_table(output / "data.parquet")["task"].to_pylist() == ["test task"]


def test_a_dataset_is_loaded_by_name(
    tasks: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    named = tmp_path / "named"
    named.mkdir()
    tasks.rename(named / "train.jsonl")
    flags = ["--model_name_or_path", "stub", "--output_dir", str(output), "--seed", "7"]
    flags += ["--max_new_tokens", "12", "--dataset_name", str(named)]
    assert collect_hidden_states.main([*flags, "--temp_dir", str(tmp_path)]) == 0
    assert_complete(output, tasks_of(named / "train.jsonl"))
    assert not list(tmp_path.glob("latentwire-*"))


def test_a_dataset_that_cannot_be_loaded_is_named_without_a_path(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model_name_or_path", "stub", "--output_dir", str(output)]
    (tmp_path / "nothing").mkdir()
    assert collect_hidden_states.main([*flags, "--dataset_name", str(tmp_path / "nothing")]) == 2
    stderr = capsys.readouterr().err
    assert "--dataset_name: cannot be loaded" in stderr
    assert str(tmp_path) not in stderr


def test_trust_and_dtype_reach_an_own_replica() -> None:
    settings = CollectSettings(
        dataset=("in",), output_dir=Path("out"), dtype="bf16", trust_remote_code=True
    )
    assert serve_command(settings)[-3:] == ("--dtype", "bf16", "--trust-remote-code")


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_both_run_as_scripts_and_as_modules(module: ModuleType) -> None:
    name = module.__name__.rpartition(".")[2]
    for command in ([str(BATCH / f"{name}.py")], ["-m", module.__name__]):
        done = subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True
        )
        assert "--dataset_path" in done.stdout
