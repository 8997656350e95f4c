"""Flags and environment variables of `latentwire serve`."""

from __future__ import annotations

from typing import Any, get_origin

import pytest
from pydantic import SecretStr

from latentwire.settings_flags import FlagError, flag_of, parse_settings
from latentwire_service.__main__ import main
from latentwire_service.api.access_policy import is_open_to_all
from latentwire_service.settings import Settings

LISTS = [
    name for name, field in Settings.model_fields.items() if get_origin(field.annotation) is tuple
]


def parse(*args: str) -> Settings:
    return parse_settings(Settings, args, "latentwire serve", "about")


def values_of(settings: Settings, name: str) -> list[str]:
    values: tuple[Any, ...] = getattr(settings, name)
    return [v.get_secret_value() if isinstance(v, SecretStr) else str(v) for v in values]


@pytest.mark.parametrize("name", LISTS)
def test_the_value_of_a_list_flag_is_never_split(name: str) -> None:
    flag = flag_of(name)
    assert values_of(parse(flag, "a,b"), name) == ["a,b"]
    assert values_of(parse(flag, "a,b", flag, "[c"), name) == ["a,b", "[c"]


@pytest.mark.parametrize("name", LISTS)
def test_a_variable_holds_several_values_and_the_flag_wins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LATENTWIRE_{name.upper()}", "a, b")
    assert values_of(parse(), name) == ["a", "b"]
    assert values_of(parse(flag_of(name), "c"), name) == ["c"]


@pytest.mark.parametrize("name", LISTS)
def test_the_help_states_the_rule_of_each_list(name: str) -> None:
    description = Settings.model_fields[name].description or ""
    assert "Repeat the flag for several" in description
    assert f"LATENTWIRE_{name.upper()} separates them by commas" in description


def test_the_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in Settings.model_fields:
        assert flag_of(name) in text
    assert "auto|N" in text
    assert "a flag's value is never split" in text
    assert "LATENTWIRE_" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--modle", "x"], "unrecognized arguments: --modle x; did you mean --model?"),
        (["--port", "eighty"], "--port: must be a whole number"),
        (["--max-slots", "0"], "--max-slots: must be auto or a whole number of at least 1"),
        (["--port"], "--port: expected one argument"),
    ],
)
def test_a_bad_flag_is_named(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FlagError):
        parse(*args)
    assert main(args) == 2
    line = capsys.readouterr().err
    assert line.startswith("latentwire serve: ")
    assert message in line
    assert line.count("\n") == 1


def test_a_key_is_not_repeated_in_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--api-key", "s3cret key", "--port", "x"]) == 2
    assert main(["--api-key", "s3cret key"]) == 2
    assert "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "is_open"),
    [
        ([], False),
        (["--host", "0.0.0.0"], True),
        (["--host", "::"], True),
        (["--host", "192.0.2.1"], True),
        (["--host", "0.0.0.0", "--api-key", "k"], False),
        (["--host", "0.0.0.0", "--api-key-file", "k"], False),
        (["--host", "::1"], False),
        (["--host", "localhost"], False),
        (["--host", "127.0.0.2"], False),
    ],
)
def test_a_service_that_is_open_to_all_is_known(args: list[str], is_open: bool) -> None:
    assert is_open_to_all(parse(*args)) is is_open


@pytest.mark.parametrize(
    ("args", "value"), [([], False), (["--compile"], True), (["--no-compile"], False)]
)
def test_switches_have_a_negative_form(args: list[str], value: bool) -> None:
    assert parse(*args).compile is value
