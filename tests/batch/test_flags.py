from __future__ import annotations

from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic_settings import BaseSettings

from latentwire.settings_flags import name_variables, origin_of
from latentwire_batch.__main__ import main
from latentwire_batch.compression.command_settings import CompressSettings
from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import UsageError
from latentwire_batch.flags import parse_settings
from latentwire_batch.shards.merge_settings import MergeSettings
from latentwire_service.bridges.fitting.settings import FitSettings
from latentwire_service.compressors.fitting.settings import CompressorSettings
from support.batch.collecting import Collect

REQUIRED = ["--dataset", "in.jsonl", "--output-dir", "out"]


def parse(*args: str) -> CollectSettings:
    required = REQUIRED[2:] if "--dataset" in args else REQUIRED
    return parse_settings(CollectSettings, [*required, *args], "collect", "about")


def test_every_field_has_a_flag_and_a_default_from_the_contract() -> None:
    settings = parse()
    assert settings.dataset == ("in.jsonl",)
    assert settings.plan_options == {
        "prompt_template": "Please provide a general plan to solve this task.\nThe task is: {task}",
        "chat_template": "auto",
        "max_new_tokens": 512,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "stop": [],
    }


def test_repeated_flags_accumulate_and_are_not_split() -> None:
    settings = parse(
        "--stop", "a,b", "--stop", "[", "--replica", "http://a", "--replica", "http://b"
    )
    assert settings.stop == ["a,b", "["]
    assert settings.replica == ("http://a", "http://b")


def test_booleans_have_a_negative_form() -> None:
    assert not parse("--no-do-sample").do_sample
    assert parse("--overwrite").overwrite


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("2KB", 2000), ("1.5 MiB", 3 << 19), ("1gb", 10**9)]
)
def test_sizes_take_units(text: str, size: int) -> None:
    assert parse("--max-shard-size", text).max_shard_size == size


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_K", "3")
    monkeypatch.setenv("LATENTWIRE_COLLECT_REPLICA", "http://a,http://b")
    assert parse().k == 3
    assert parse("--k", "4").k == 4
    assert parse().replica == ("http://a", "http://b")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, field in CollectSettings.model_fields.items()
        # The columns are a fixed set of names, and none holds a comma.
        if get_origin(field.annotation) in (tuple, list) and name != "columns"
    ],
)
def test_the_value_of_a_list_flag_is_never_split(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    # An engine argument must be KEY=VALUE; the values of the other flags are free.
    first, second = ("a=b,c", "d=e") if name == "engine_arg" else ("a,b", "c")
    for values in ([first], [first, second]):
        args = [part for value in values for part in (flag, value)]
        assert list(getattr(parse(*args), name)) == values


def test_variables_of_lists_are_read_as_the_help_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_REPLICA", "http://a,http://b")
    monkeypatch.setenv("LATENTWIRE_COLLECT_STOP", '["a,b", "c"]')
    monkeypatch.setenv("LATENTWIRE_COLLECT_ENGINE_ARG", '["x={\\"a\\": 1, \\"b\\": 2}", "c=d"]')
    assert parse().replica == ("http://a", "http://b")
    assert list(parse().stop) == ["a,b", "c"]
    assert parse().engine_arg == ('x={"a": 1, "b": 2}', "c=d")
    monkeypatch.setenv("LATENTWIRE_COLLECT_ENGINE_ARG", "a=1, b=[2],")
    assert parse().engine_arg == ("a=1", "b=[2]")
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "LATENTWIRE_COLLECT_REPLICA separates them by commas" in text
    assert "In a variable, a list is JSON unless" in text


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("a,b.jsonl", ("a,b.jsonl",)),
        ("[2] tasks.jsonl", ("[2] tasks.jsonl",)),
        ("[1, 2]", ("[1, 2]",)),
        ('["a,b", "test=c"]', ("a,b", "test=c")),
    ],
)
def test_the_variable_of_the_dataset_is_one_input_or_a_json_list(
    value: str, inputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_DATASET", value)
    assert parse_settings(CollectSettings, REQUIRED[2:], "c", "about").dataset == inputs
    assert parse("--dataset", "x").dataset == ("x",)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--k", "-1"], "--k: must be at least 0"),
        (["--k", "x"], "--k: must be a whole number"),
        (["--max-slots", "0"], "--max-slots: must be auto or a whole number of at least 1"),
        (["--top-p", "0"], "--top-p: must be above 0"),
        (["--max-shard-size", "5 apples"], "--max-shard-size: must be a number of bytes"),
        (
            ["--tempratur", "1"],
            r"unrecognized arguments: --tempratur 1; did you mean --temperature\?$",
        ),
        (
            ["--task_field=text"],
            r"unrecognized arguments: --task_field=text; did you mean --task-field\?$",
        ),
        (["--depth", "1"], "unrecognized arguments: --depth 1$"),
        (["--max-new", "1"], "unrecognized arguments: --max-new"),
        (["--k"], "--k: expected one argument$"),
        (["--k", "--overwrite"], "--k: expected one argument$"),
        (
            ["--id-field", "-id"],
            "--id-field: expected one argument; .* dash is given as --id-field=VALUE$",
        ),
        # One dash too few is not -o with a strange directory.
        (["-overwrite"], r"unrecognized arguments: -overwrite; did you mean --overwrite\?$"),
        (["-output-dir=x"], "unrecognized arguments: -output-dir=x; did you mean --output-dir"),
        (["-seed", "7"], r"unrecognized arguments: -seed 7; did you mean --seed\?$"),
        (["--chat-template", "llama"], "--chat-template: must be one of auto, none, qwen"),
    ],
)
def test_a_bad_flag_is_named(args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        parse(*args)


@pytest.mark.parametrize(
    ("settings_type", "others"),
    [
        (CollectSettings, ["--dataset", "a"]),
        (MergeSettings, ["a", "b"]),
        (CompressSettings, ["a"]),
        (FitSettings, ["a"]),
        (CompressorSettings, ["a"]),
    ],
)
def test_every_command_takes_its_directory_in_a_short_form(
    settings_type: type[BaseSettings], others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {
        ("-o", "out"): "out",
        ("-oout",): "out",
        ("-o=out",): "out",
        ("--output-dir", "out"): "out",
        ("--output-dir=out",): "out",
        ("-o-out",): "-out",
        ("-o=-out",): "-out",
        ("--output-dir=-out",): "-out",
        ("-o=a=b",): "a=b",
    }
    monkeypatch.setenv(f"{settings_type.model_config['env_prefix']}OUTPUT_DIR", "unused")
    for words, expected in forms.items():
        for line in ([*others, *words], [*words, *others]):
            settings: Any = parse_settings(settings_type, line, "c", "about")
            assert settings.output_dir == Path(expected)
        message = "--output-dir: is not a directory"
        assert name_variables(message, settings_type, words) == message
        assert origin_of("output_dir", settings_type, words) == "--output-dir"
    for words, reason in {("-o",): "expected one argument", ("-o", "-x"): "VALUE"}.items():
        with pytest.raises(UsageError, match=f"^--output-dir: .*{reason}$"):
            parse_settings(settings_type, [*others, *words], "c", "about")


def test_words_after_two_dashes_are_no_flags() -> None:
    settings = parse_settings(MergeSettings, ["-oout", "--", "-o", "-x"], "c", "about")
    assert settings.shards == (Path("-o"), Path("-x"))


def test_bad_usage_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output-dir", "x"]) == 2
    assert capsys.readouterr().err == "latentwire collect: --dataset: required\n"


def test_overwrite_and_retry_failed_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--overwrite", "--retry-failed"]) == 2
    assert capsys.readouterr().err == (
        "latentwire collect: --retry-failed: cannot be used with --overwrite, "
        "which discards all rows\n"
    )


def test_flags_of_own_replicas_have_no_effect_with_given_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*REQUIRED, "--replica", "http://a", "--model", "m", "--max-slots", "2"]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "latentwire collect: --model, --max-slots: no effect with --replica"


def test_a_key_is_not_repeated_in_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--api-key", "s3cret", "--k", "x"]) == 2
    assert "s3cret" not in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in CollectSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


_OUTPUTS: dict[str, type[BaseSettings]] = {"--output-dir": CollectSettings, "-o": MergeSettings}
_DIRECTORIES: dict[str, type[BaseSettings]] = {
    "--work-dir": CollectSettings,
    "--output-dir": CompressSettings,
}


def refusal(settings: type[BaseSettings], flag: str, value: str) -> str:
    given = {
        CollectSettings: ["--dataset", "x", *([] if flag == "--output-dir" else ["-o", "out"])],
        MergeSettings: ["shards"],
        CompressSettings: ["in"],
    }[settings]
    with pytest.raises(UsageError) as refused:
        parse_settings(settings, [*given, flag, value], "latentwire", "about")
    return str(refused.value)


@pytest.mark.parametrize("flag", _OUTPUTS)
@pytest.mark.parametrize(
    "url",
    [
        "http://host/out",
        "HTTPS://host/out?token=key",
        "https://user:key@host",
        "http://",
        "data://x",
    ]
    + ["https://huggingface.co/datasets/o/n", "github://o:r@main/out", "zip://out::s3://b/a.zip"],
)
def test_a_url_that_is_only_read_is_refused_as_the_place_of_an_output(url: str, flag: str) -> None:
    scheme = url.partition("://")[0].lower()
    assert refusal(_OUTPUTS[flag], flag, url) == (
        f"--output-dir: nothing can be written over {scheme}://; give a directory, or a URL like "
        "s3://bucket/folder, gs://bucket/folder or hf://datasets/owner/name"
    )


@pytest.mark.parametrize("flag", _OUTPUTS)
@pytest.mark.parametrize("text", ["simplecache::s3://bucket/out", "arrow_hdfs://out", "://out"])
def test_a_text_around_a_url_makes_no_directory(text: str, flag: str) -> None:
    reason = "is neither a path nor a URL like s3://bucket/folder"
    assert refusal(_OUTPUTS[flag], flag, text) == f"--output-dir: {reason}"


@pytest.mark.parametrize("flag", _DIRECTORIES)
@pytest.mark.parametrize("text", ["s3://b/x", "https://host/x", "s3:/b/x", "a::s3://b/x", "hf:x"])
def test_a_url_is_no_directory_of_this_machine(text: str, flag: str) -> None:
    reason = "must be a directory of this machine"
    assert refusal(_DIRECTORIES[flag], flag, text) == f"{flag}: {reason}"


def test_a_directory_of_this_machine_may_be_a_url_of_it() -> None:
    settings = parse("--work-dir", "file:///tmp/a%20b", "--output-dir", "file:///tmp/out")
    assert (settings.work_dir, settings.output_dir) == (Path("/tmp/a b"), Path("/tmp/out"))


@pytest.mark.parametrize("flag", ["--dataset", "--output-dir", "--work-dir"])
def test_an_empty_path_is_refused(flag: str, collect: Collect) -> None:
    """It would be the current folder."""
    ended = collect(flag, "")
    assert ended.status == 2
    assert f"{flag}: must not be empty" in ended.stderr


def test_addresses_in_a_variable_may_have_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_REPLICA", "http://a:1, http://b:2 ,")
    settings = CollectSettings(dataset=("in",), output_dir=Path("out"))
    assert settings.replica == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LIMIT", "x", "must be a whole number"),
        ("OVERWRITE", "maybe", "must be true or false"),
        ("STOP", "a,b", "must be JSON"),
        ("STOP_TOKEN_IDS", "1,2", r"must be a JSON list, such as \[1, 2\]$"),
        ("STOP_TOKEN_IDS", "7", r"must be a JSON list, such as \[1, 2\]$"),
        ("STOP", '"a"', r"must be a JSON list, such as \[1, 2\]$"),
        ("COLUMNS", "seed,foo", "'foo' is not one of"),
        ("TOP_P", "2", "must be at most 1"),
    ],
)
def test_a_wrong_value_in_a_variable_names_the_variable(
    name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LATENTWIRE_COLLECT_{name}", value)
    with pytest.raises(UsageError, match=f"^LATENTWIRE_COLLECT_{name}: {reason}"):
        parse()


def test_a_flag_that_overrides_a_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_LIMIT", "5")
    with pytest.raises(UsageError, match="^--limit: must be a whole number"):
        parse("--limit", "x")
