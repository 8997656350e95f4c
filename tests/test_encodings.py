"""Files are UTF-8 whatever the locale, and a terminal that lacks a character gets a replacement."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support.batch.stub_replica import StubReplica

ROOT = Path(__file__).parent.parent
TEXT = "Täsk ☀ — 世界 \U0001f600"
ENVIRONMENTS = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    "no such locale": {"LC_ALL": "xx_XX.KOI8-R", "PYTHONUTF8": "0"},
}


def opens_text_without_encoding(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        # `output.durable.write_text(path, text)` is a function, and writes UTF-8.
        return isinstance(function, ast.Attribute) and len(call.args) < 2
    if name != "open":
        return False
    owner = function.value if isinstance(function, ast.Attribute) else None
    binary = ("os", "gzip", "bz2", "lzma", "archive", "file", "segments")
    if isinstance(owner, ast.Name) and owner.id in binary:
        return False
    modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    return not any(isinstance(mode, str) and "b" in mode for mode in modes)


@pytest.mark.parametrize(
    "folder", ["client", "service", "batch", "tools", "benchmarks", "examples"]
)
def test_every_text_file_is_opened_with_an_encoding(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert found == []


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the locale en_US.ISO-8859-1, where the system can make it."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") and Path("/usr/share/i18n/locales/en_US").exists():
        name = "en_US.ISO-8859-1"
        command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
        subprocess.run(command, check=False, capture_output=True)
    return folder


def environment_of(name: str, locales: Path) -> dict[str, str]:
    if name == "ISO-8859-1" and not any(locales.iterdir()):
        pytest.skip("the locale ISO-8859-1 cannot be made here")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LC_", "LANG", "PYTHONIOENC", "PYTHONUTF8", "PYTHONCOERCE"))
    }
    return kept | ENVIRONMENTS[name] | ({"LOCPATH": str(locales)} if name == "ISO-8859-1" else {})


# Runs each command line of the first argument in one process, because a start of Python takes most
# of the time. The last line holds the exit statuses.
RUN_ALL = """
import json, sys
from latentwire.cli import main
statuses = []
for args in json.loads(sys.argv[1]):
    sys.argv = ["latentwire", *args]
    try:
        main()
    except SystemExit as ended:
        statuses.append(ended.code or 0)
print(json.dumps(statuses))
"""


def run_all(
    commands: list[list[str]], environment: dict[str, str], cwd: Path
) -> tuple[list[int], str]:
    arguments = [sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    ended = subprocess.run(arguments, env=environment, cwd=cwd, capture_output=True, timeout=120)
    output = (ended.stderr + ended.stdout).decode(errors="replace")
    assert "Traceback" not in output
    assert "UnicodeEncodeError" not in output
    return json.loads(output.splitlines()[-1]), output


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_command_works_in_every_locale(name: str, locales: Path, tmp_path: Path) -> None:
    environment = environment_of(name, locales)
    records = [{"id": f"ü{i}", "task": f"{TEXT} {i}"} for i in range(3)] + [{"id": "é", "task": ""}]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "tasks.jsonl").write_text(lines, encoding="utf-8")
    with StubReplica() as stub:
        collect = ["collect", "--dataset", "tasks.jsonl", "--output-dir", "out", "--skip-invalid"]
        collect += ["--replica", stub.base_url, "--prompt-template", "{task}"]
        plan = ["plan", "--url", stub.base_url, "--seed", "1", "--max-new-tokens", "9", "Hi"]
        commands = {
            "collect": (collect, 3),
            "a retry": ([*collect, "--retry-failed"], 3),
            "plan": (plan, 0),
            "inspect": (["inspect", "out", "--html", "report.html"], 1),
            "help of serve": (["serve", "--help"], 0),
            "help of plan": (["plan", "--help"], 0),
            # Messages that quote a value which the terminal cannot show.
            "a wrong value": (["collect", "--dataset", "x", "--k", TEXT], 2),
            "no service": (["plan", "--url", "http://127.0.0.1:9", TEXT], 1),
        }
        args = [args for args, _ in commands.values()]
        statuses, output = run_all(args, environment, tmp_path)
        assert statuses == [status for _, status in commands.values()], output
        assert "--k" in output
    tasks = pq.read_table(tmp_path / "out" / "data.parquet")["task"].to_pylist()
    assert tasks == [record["task"] for record in records[:3]]
    failures = (tmp_path / "out" / "failures.jsonl").read_text(encoding="utf-8")
    assert json.loads(failures)["task_id"] == "é"
    assert TEXT in (tmp_path / "report.html").read_text(encoding="utf-8")
