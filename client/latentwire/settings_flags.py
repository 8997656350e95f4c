"""Command line to settings: one flag per field of a pydantic-settings class.

pydantic-settings makes the flags and their help, and reads the environment. Its `CliApp` is not
used to parse, because it joins the values of a repeated flag and splits them at commas again,
which keys and stop strings may contain.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn, TypeVar, get_origin

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from latentwire.validation import Location, describe

SettingsT = TypeVar("SettingsT", bound=BaseSettings)

# pydantic-settings shows Python types (`tuple[str,...]`, `{auto,int}`) and empty defaults.
_METAVARS = {"int": "N", "float": "X", "Path": "PATH", "RemotePath": "URL"}
_PYTHON_TYPE = re.compile(r"(?:tuple|list)\[.*\]|\b(?:int|float|str|Path|RemotePath|SecretStr)\b")
_BLAMED_FLAG = re.compile(r"(?:(?<=^)|(?<=; ))--[a-z][\w-]*(?=: )")
# How argparse words these errors.
_UNKNOWN = "unrecognized arguments: "
_NO_VALUE = "expected one argument"
# One letter, as in other tools that write one output.
_SHORT_FLAGS = {"-o": "output_dir"}
_NO_DEFAULT = re.compile(r" ?\(default: (?:None|\(\)|\[\])\)")


class FlagError(Exception):
    """A flag or an environment variable cannot be used; the text names it."""


class FlagParser(argparse.ArgumentParser):
    """Raises `FlagError` instead of exiting, so that a command reports every error alike."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but word the error of one flag as `--flag: reason`."""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            reason = error.message
            if reason == _NO_VALUE:
                reason += self._dash_advice(str(error.argument_name), args or ())
            self.error(f"{error.argument_name}: {reason}")

    def _dash_advice(self, flag: str, args: Sequence[str]) -> str:
        """Say how a value that begins with a dash is given, where one follows the flag."""
        for word, following in pairwise(args):
            name = following.partition("=")[0]
            if word == flag and name.startswith("-") and name not in self._option_string_actions:
                # Not the value: it may be a key.
                return f"; a value that begins with a dash is given as {flag}=VALUE"
        return ""

    def error(self, message: str) -> NoReturn:
        """Raise FlagError; for an unknown flag, name the flag that it resembles."""
        if message.startswith(_UNKNOWN):
            message += self._suggestion(message.removeprefix(_UNKNOWN).split())
        raise FlagError(message)

    def _suggestion(self, unknown: Sequence[str]) -> str:
        name = next((text.partition("=")[0] for text in unknown if text.startswith("-")), "")
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        wanted = "--" + name.lstrip("-").replace("_", "-")
        similar = difflib.get_close_matches(wanted, known, n=1, cutoff=0.75)
        return f"; did you mean {similar[0]}?" if similar else ""


_NO_LIST = ": must be a list"
_NO_JSON_LIST = ": must be a JSON list, such as [1, 2]"


def parse_settings(
    settings_type: type[SettingsT], args: Sequence[str], prog: str, description: str
) -> SettingsT:
    """Parse a command line.

    A flag wins over an environment variable, which wins over the field's default. A list field is
    set by repeating its flag; a flag's value is never split, unless its field does so.

    Args:
        settings_type: its fields become flags, in kebab case; booleans get a `--no-` form.
        args: the command line without the program's name.
        prog: the program's name in the help text.
        description: first line of the help text.

    Raises:
        FlagError: naming the flag and what is wrong with it.
        SystemExit: with status 0, after `--help` was printed.
    """
    parser = FlagParser(
        prog=prog,
        description=description,
        epilog=_epilog(settings_type),
        allow_abbrev=False,
        exit_on_error=False,
    )
    positional: set[str] = set()
    CliSettingsSource(
        settings_type,
        root_parser=parser,
        add_argument_method=partial(_add_flag, _repeatable(settings_type), positional),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    def name_flag(name: str) -> str:
        return name.upper() if name in positional else flag_of(name)

    words = with_long_flags(args, settings_type)
    return make_settings(settings_type, vars(parser.parse_args(words)), name_flag)


def make_settings(
    settings_type: type[SettingsT], given: Mapping[str, Any], name_flag: Callable[[str], str]
) -> SettingsT:
    """Make settings from the values of a command line.

    Args:
        settings_type: the settings' class.
        given: values by field; may still be text.
        name_flag: returns the flag of a field.

    Raises:
        FlagError: naming the flag, or the variable where no flag is given, and what is wrong.
    """
    try:
        return settings_type(**given)
    except ValidationError as error:

        def origin(location: Location) -> str:
            name = str(location[0])
            variable = None if name in given else _set_variable(settings_type, name)
            return variable or name_flag(name)

        # Only a variable can hold something else: a flag that is repeated makes a list.
        message = describe(error, origin).replace(_NO_LIST, _NO_JSON_LIST)
        raise FlagError(message) from error
    except SettingsError as error:
        raise FlagError(_not_json(settings_type, str(error))) from error


def _not_json(settings_type: type[BaseSettings], message: str) -> str:
    """Name the variable whose value is not JSON; pydantic-settings names the field."""
    found = re.search(r'for field "(\w+)"', message)
    if found is None:
        return message
    return f'{_variable(settings_type, found[1])}: must be JSON, such as ["one", "two"] for a list'


def _variable(settings_type: type[BaseSettings], name: str) -> str:
    prefix = settings_type.model_config.get("env_prefix", "")
    return f"{prefix}{name.upper()}"


def _set_variable(settings_type: type[BaseSettings], name: str) -> str | None:
    """Return a field's variable as the environment spells it, if it is set."""
    # pydantic-settings reads variables without regard to case.
    wanted = _variable(settings_type, name)
    spelled = (name for name, value in os.environ.items() if name.upper() == wanted and value)
    return next(spelled, None)


def flag_of(name: str) -> str:
    """Return the flag that sets a field: `top_p` is set by `--top-p`."""
    return "--" + name.replace("_", "-")


def with_long_flags(args: Sequence[str], settings_type: type[BaseSettings]) -> list[str]:
    """Return a command line with `--output-dir` in place of `-o`.

    The value may follow in the same word, as in `-oDIR` and `-o=DIR`. A long flag that lacks a dash
    stays as it is, and is refused when the line is parsed.

    Args:
        args: the command line.
        settings_type: only the short flags of its fields are replaced.
    """
    fields = settings_type.model_fields
    long_flags = {flag_of(name) for name in fields}
    known = {short: flag_of(name) for short, name in _SHORT_FLAGS.items() if name in fields}
    words: list[str] = []
    for number, word in enumerate(args):
        if word == "--":
            return [*words, *args[number:]]
        flag, value = known.get(word[:2]), word[2:]
        if flag is None or f"-{word.partition('=')[0]}" in long_flags:
            words.append(word)
        else:
            words.append(f"{flag}={value.removeprefix('=')}" if value else flag)
    return words


def _given_flags(args: Sequence[str], settings_type: type[BaseSettings]) -> set[str]:
    return {word.partition("=")[0] for word in with_long_flags(args, settings_type)}


def origin_of(name: str, settings_type: type[BaseSettings], args: Sequence[str]) -> str:
    """Return the flag that sets a field, or the variable where that is set and the flag is not."""
    flag = flag_of(name)
    is_given = flag in _given_flags(args, settings_type)
    return flag if is_given else _set_variable(settings_type, name) or flag


def name_variables(
    message: str,
    settings_type: type[BaseSettings],
    args: Sequence[str],
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Name the environment variable where a message names the flag that nobody gave.

    Args:
        message: of the form `--flag: reason; --other-flag: reason`.
        settings_type: its variables.
        args: the command line.
        environ: of this process.
    """
    prefix = settings_type.model_config.get("env_prefix", "")
    # pydantic-settings reads variables without regard to case.
    variables = {name.upper(): name for name, value in environ.items() if value}
    given = _given_flags(args, settings_type)

    def source(flag: re.Match[str]) -> str:
        variable = variables.get((prefix + flag[0][2:]).replace("-", "_").upper())
        return flag[0] if variable is None or flag[0] in given else variable

    return _BLAMED_FLAG.sub(source, message)


def _epilog(settings_type: type[BaseSettings]) -> str:
    prefix = settings_type.model_config.get("env_prefix", "")
    return (
        f"Each flag can also be set by an environment variable: {prefix} and the flag's name in "
        "capitals, with underscores. The flag wins. Repeat a flag to give it several values: a "
        "flag's value is never split, unless its help says so. In a variable, a list is JSON "
        "unless the help of its flag names another form."
    )


def _repeatable(settings_type: type[BaseSettings]) -> set[str]:
    """Name the list fields. Older versions of pydantic-settings do not repeat tuples."""
    fields = settings_type.model_fields.items()
    return {name for name, field in fields if get_origin(field.annotation) in (list, tuple)}


def _add_flag(
    repeatable: set[str],
    positional: set[str],
    parser: argparse.ArgumentParser,
    *names: str,
    **options: Any,
) -> None:
    """Add a flag or an argument that pydantic-settings has prepared; called for each field.

    Every flag gets two dashes (`--k`, not `-k`) and a placeholder that names no Python type. The
    names of arguments without a flag are added to `positional`.
    """
    if names[0].startswith("-"):
        names = tuple("--" + name.lstrip("-") for name in names)
        if "metavar" in options:
            placeholder = _PYTHON_TYPE.sub(_word_for, options["metavar"])
            options["metavar"] = placeholder.strip("{}").replace(",", "|")
    if options.get("dest") in repeatable:
        options["action"] = "append"
    elif names[0] in repeatable:
        # An argument that takes several values; none is an error of the settings' class.
        options["nargs"] = "*"
    options["help"] = _NO_DEFAULT.sub("", options["help"])
    if not names[0].startswith("-"):
        positional.add(names[0])
        options["default"] = argparse.SUPPRESS
    # The settings' class reports what is missing, so that all commands word it alike.
    parser.add_argument(*names, **options).required = False


def _word_for(match: re.Match[str]) -> str:
    return _METAVARS.get(match[0], "TEXT")
