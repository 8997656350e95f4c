from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import latentwire
from latentwire.cli import app
from latentwire.plan_command import PlanSettings
from latentwire.settings_flags import FlagError, parse_settings
from latentwire.subcommands import COLLECT, SERVE, Subcommand
from latentwire.tensors import encode_hidden_state

COMMANDS = pytest.mark.parametrize("command", [SERVE, COLLECT], ids=lambda command: command.name)


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, args, env=env, prog_name="latentwire")


@pytest.fixture
def answered(server: Any, wire: Any) -> Any:
    server.script = [wire.json_answer(wire.plan_body(k=2))]
    return server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.retry.retry_delay", lambda *_: 0.0)


def test_plan_prints_plan_shape_and_usage(answered: Any) -> None:
    result = run("plan", "Clean the kettle", "--url", answered.url, "--k", "2")
    assert result.exit_code == 0
    assert result.stdout == (
        "1. Fill it.\n"
        "\n"
        "hidden_state: [2, 3] float32\n"
        "usage: 5 prompt tokens, 4 completion tokens, 2 hidden rows; "
        "finish_reason stop, seed 11\n"
    )


def test_plan_prints_the_compressed_latent_and_saves_it_in_place_of_the_full_one(
    server: Any, wire: Any, tmp_path: Path
) -> None:
    rows = wire.hidden_rows(2)
    compressor = {
        "name": "mean-pool",
        "kind": "mean-pool",
        "content_hash": "ab" * 32,
        "parameters": {"k": 2},
        "output": "rows",
    }
    body = wire.plan_body(
        k=2,
        hidden_state=None,
        hidden_state_comp=encode_hidden_state(rows, "float16").model_dump(),
        compressor=compressor,
    )
    body["usage"]["latent_rows"] = 0
    server.script = [wire.json_answer(body)]
    path = tmp_path / "rows.npy"
    flags = ("--compressor", "mean-pool", "--no-return-hidden-state", "--dtype", "float16")
    result = run("plan", "t", "--url", server.url, "--k", "2", *flags, "--output", str(path))
    assert result.exit_code == 0, result.stderr
    assert "hidden_state:" not in result.stdout
    assert "hidden_state_comp: [2, 3] float32, compressor mean-pool\n" in result.stdout
    np.testing.assert_allclose(np.load(path), rows, rtol=1e-3)
    assert server.received[0].json == {
        "task": "t",
        "task_id": None,
        "compressor": "mean-pool",
        "return_hidden_state": False,
        "dtype": "float16",
    }


def test_plan_does_not_read_the_variables_of_the_service(answered: Any) -> None:
    env = {"LATENTWIRE_COMPRESSOR": "/bridges/pca", "LATENTWIRE_DTYPE": "bf16", "LATENTWIRE_K": "2"}
    result = run("plan", "t", "--url", answered.url, env=env)
    assert result.exit_code == 0, result.stderr
    assert answered.received[0].path == "/plan_latent?k=2"
    assert answered.received[0].json == {"task": "t", "task_id": None}


def test_plan_refuses_an_output_without_rows(answered: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    result = run(
        *("plan", "t", "--url", answered.url, "--no-return-hidden-state", "--output", str(path))
    )
    assert result.exit_code == 2
    assert "--output: " in result.stderr
    assert "--no-return-hidden-state" in result.stderr
    assert not path.exists()
    assert not answered.received


def test_plan_sends_only_the_options_given(answered: Any) -> None:
    run("plan", "t", "--url", answered.url, "--k", "2")
    assert answered.received[0].json == {"task": "t", "task_id": None}


def test_plan_sends_every_option(answered: Any) -> None:
    result = run(
        *("plan", "t", "--url", answered.url, "--k", "2", "--greedy", "--temperature", "0.5"),
        *("--top-p", "0.8", "--top-k", "5", "--seed", "0", "--stop", "a", "--stop", "b"),
        *("--max-new-tokens", "9", "--chat-template", "qwen", "--prompt-template", "{task}!"),
        *("--api-key", "s3cret"),
    )
    assert result.exit_code == 0
    (received,) = answered.received
    assert received.path == "/plan_latent?k=2"
    assert received.headers["authorization"] == "Bearer s3cret"
    assert received.json == {
        "task": "t",
        "task_id": None,
        "prompt_template": "{task}!",
        "chat_template": "qwen",
        "max_new_tokens": 9,
        "do_sample": False,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 5,
        "seed": 0,
        "stop": ["a", "b"],
    }


def test_plan_reads_url_and_key_from_the_environment(answered: Any) -> None:
    env = {"LATENTWIRE_URL": answered.url, "LATENTWIRE_API_KEY": "s3cret"}
    assert run("plan", "t", "--k", "2", env=env).exit_code == 0
    assert answered.received[0].headers["authorization"] == "Bearer s3cret"


def test_every_option_can_come_from_the_environment_and_a_flag_wins(answered: Any) -> None:
    env = {"LATENTWIRE_URL": answered.url, "LATENTWIRE_TOP_K": "3", "LATENTWIRE_SEED": "8"}
    assert run("plan", "t", "--k", "2", "--seed", "9", env=env).exit_code == 0
    assert answered.received[0].json == {"task": "t", "task_id": None, "top_k": 3, "seed": 9}


def test_a_key_is_not_repeated_in_an_error() -> None:
    result = run("plan", "t", "--api-key", "s3cret key", "--k", "x")
    assert result.exit_code == 2
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize("flag", ["--greedy", "--no-do-sample"])
def test_greedy_decoding_has_two_names(answered: Any, flag: str) -> None:
    assert run("plan", "t", "--url", answered.url, "--k", "2", flag).exit_code == 0
    assert answered.received[0].json["do_sample"] is False


def test_an_empty_key_in_the_environment_is_ignored(answered: Any) -> None:
    env = {"LATENTWIRE_URL": answered.url, "LATENTWIRE_API_KEY": ""}
    assert run("plan", "t", "--k", "2", env=env).exit_code == 0
    assert "authorization" not in answered.received[0].headers


@pytest.mark.parametrize("name", ["x.npy", "latent", "latent.bin"])
def test_output_has_exactly_the_name_given(
    answered: Any, wire: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    result = run("plan", "t", "--url", answered.url, "--k", "2", "--output", str(path))
    assert result.stdout.endswith(f"saved: {path}\n")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    saved = np.load(path)
    assert saved.dtype == np.float32
    np.testing.assert_array_equal(saved, wire.hidden_rows(2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent/x.npy", "No such file or directory"),
        ("file/x.npy", "Not a directory"),
        ("folder", "Is a directory"),
    ],
)
def test_unwritable_output_is_bad_usage_before_anything_is_sent(
    answered: Any, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    result = run("plan", "t", "--url", answered.url, "--k", "2", "--output", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"latentwire plan: --output: {path}: {reason}\n"
    assert answered.received == []


def test_checking_the_output_changes_no_file(server: Any, wire: Any, tmp_path: Path) -> None:
    server.script = [wire.json_answer(wire.problem(500, "internal"), 500)] * 9
    kept, absent = tmp_path / "kept.npy", tmp_path / "absent.npy"
    kept.write_bytes(b"earlier")
    for path in (kept, absent):
        assert run("plan", "t", "--url", server.url, "--output", str(path)).exit_code == 1
    assert kept.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.usefixtures("impatient")
def test_plan_without_a_service_shows_its_retries_and_advice_with_status_1(
    refused_url: str,
) -> None:
    result = run("plan", "t", "--url", refused_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"latentwire plan: POST {refused_url}/plan_latent: ")
    *retries, last = result.stderr.splitlines()
    fault = f"latentwire plan: POST {refused_url}/plan_latent: nothing listens there"
    assert [line.rpartition(" in ")[0] for line in retries] == [f"{fault}; retrying"] * 4
    assert last == (
        f"{fault}; start a service with `latentwire serve`, or name another one by --url"
    )


def test_service_error_is_one_line_and_status_1(server: Any, wire: Any) -> None:
    body = wire.problem(422, "prompt-too-long", detail="has 90 tokens,\nof 64")
    server.script = [wire.json_answer(body, 422)]
    result = run("plan", "t", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "latentwire plan: prompt-too-long (422): has 90 tokens, of 64\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--temperature", "-1"], "--temperature: must be at least 0"),
        (
            ["--chat-template", "chatml"],
            "--chat-template: must be one of auto, none, qwen",
        ),
        (["--k", "-1"], "--k: must be at least 0"),
        (["--timeout", "0"], "--timeout: must be above 0"),
        (["--url", "nowhere"], "--url: must be like"),
        (["--k", "many"], "--k: must be a whole number"),
        (["--depth", "3"], "unrecognized arguments: --depth 3"),
    ],
)
def test_bad_usage_is_status_2(args: list[str], message: str) -> None:
    result = run("plan", "t", *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_task_is_named() -> None:
    result = run("plan", "--k", "1")
    assert (result.exit_code, result.stderr) == (2, "latentwire plan: TASK: required\n")


def test_version_is_printed() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"latentwire {latentwire.__version__}\n")


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "latentwire", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"latentwire {latentwire.__version__}\n"


class FakeMain(ModuleType):
    """Stands in for a package's `__main__`; keeps its arguments."""

    def __init__(self, name: str, outcome: int | Exception) -> None:
        super().__init__(name)
        self.calls: list[list[str]] = []
        self._outcome = outcome

    def main(self, args: list[str]) -> int:
        self.calls.append(args)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def install(
    monkeypatch: pytest.MonkeyPatch, command: Subcommand, outcome: int | Exception
) -> FakeMain:
    fake = FakeMain(command.module, outcome)
    monkeypatch.setitem(sys.modules, command.module, fake)
    return fake


@COMMANDS
@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--help"],
        ["--version"],
        ["--model", "demo", "extra", "-x1", "--port=8", "--", "--help", "--", "last"],
    ],
)
def test_arguments_are_forwarded_untouched(
    monkeypatch: pytest.MonkeyPatch, command: Subcommand, args: list[str]
) -> None:
    fake = install(monkeypatch, command, outcome=0)
    assert run(command.name, *args).exit_code == 0
    assert fake.calls == [args]


@COMMANDS
def test_the_command_exits_with_the_status_of_its_subcommand(
    monkeypatch: pytest.MonkeyPatch, command: Subcommand
) -> None:
    install(monkeypatch, command, outcome=130)
    assert run(command.name).exit_code == 130


@COMMANDS
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, command: Subcommand) -> None:
    name = f"{min(command.dependencies)}.part"
    install(monkeypatch, command, ModuleNotFoundError("No module", name=name))
    result = run(command.name, "--port", "1")
    assert result.exit_code == 2
    assert result.stderr == (
        f"latentwire {command.name} needs the {command.extra} extra: "
        f'pip install "latentwire[{command.extra}]"\n'
    )


@COMMANDS
@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module", name="latentwire_service.lost"),
        ModuleNotFoundError("No module"),
        ImportError("cannot import name", name="torch"),
    ],
    ids=["our own module", "unnamed", "name in a module"],
)
def test_other_import_errors_are_not_masked(
    monkeypatch: pytest.MonkeyPatch, command: Subcommand, error: ImportError
) -> None:
    install(monkeypatch, command, error)
    assert run(command.name).exception is error


@COMMANDS
def test_real_subcommand_without_its_extra_names_it(command: Subcommand, tmp_path: Path) -> None:
    args = {"serve": ["--model", "demo"], "collect": ["--dataset", "x", "--output-dir", "y"]}
    script = (
        "import sys\n"
        f"sys.modules |= dict.fromkeys({sorted(command.dependencies)!r})\n"
        f"sys.argv = ['latentwire', {command.name!r}, *{args[command.name]!r}]\n"
        "from latentwire.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"latentwire {command.name} needs the {command.extra} extra: "
        f'pip install "latentwire[{command.extra}]"\n'
    )


@pytest.mark.parametrize("value", ["abc", "a,b", '["a"', "[a]"])
def test_a_list_variable_that_is_not_json_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LATENTWIRE_STOP", value)
    with pytest.raises(FlagError, match=r"^LATENTWIRE_STOP: must be JSON, such as "):
        parse_settings(PlanSettings, ["x"], "latentwire plan", "about")
