"""Command line to settings: one flag per field of a settings class.

pydantic-settings' own command line is not used: it turns the field `k` into `-k` and splits a
repeated text flag at commas, which stop strings may hold.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsError

from latentwire_batch.errors import UsageError

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def parse_settings(
    settings_type: type[SettingsT], args: Sequence[str], prog: str, description: str
) -> SettingsT:
    """Parse a command line.

    A flag wins over an environment variable, which wins over the field's default.

    Args:
        settings_type: its fields become flags, in kebab case; booleans get a `--no-` form, tuples
            may be repeated.
        args: the command line without the program's name.
        prog: the program's name in the help text.
        description: first line of the help text.

    Raises:
        UsageError: naming the flag and what is wrong with it.
        SystemExit: with status 0, after `--help` was printed.
    """
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    for name, field in settings_type.model_fields.items():
        _add_flag(parser, name, field)
    return make_settings(settings_type, vars(parser.parse_args(args)), flag_of)


def make_settings(
    settings_type: type[SettingsT], given: Mapping[str, Any], name_flag: Callable[[str], str]
) -> SettingsT:
    """Make settings from what was given on a command line.

    Args:
        settings_type: what to make.
        given: values by field; may be text still.
        name_flag: names the flag of a field.

    Raises:
        UsageError: naming the flag and what is wrong with it.
    """
    try:
        return settings_type(**given)
    except ValidationError as error:
        raise UsageError(_describe(error, name_flag)) from error
    except SettingsError as error:
        raise UsageError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that every usage error is reported in the same way."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)


def flag_of(name: str) -> str:
    """Give the flag that sets a field: `top_p` is set by `--top-p`."""
    return "--" + name.replace("_", "-")


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    # Absent flags stay out of the namespace: the environment and the defaults come after them.
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
    value_type = _without_none(field.annotation)
    if value_type is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(value_type) is tuple:
        options |= {"action": "append", "metavar": "TEXT"}
    elif isinstance(value_type, type):
        options["metavar"] = {"int": "N", "float": "X", "Path": "PATH"}.get(
            value_type.__name__, "TEXT"
        )
    else:
        options["metavar"] = "|".join(map(str, get_args(value_type)))
    parser.add_argument(flag_of(name), dest=name, **options)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    return next(choice for choice in get_args(annotation) if choice is not type(None))


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required():
        text += " Required."
    elif field.default not in (None, (), False, True):
        text += f" Default: {field.default!r}."
    elif field.default is True:
        text += " Default: yes."
    return text.replace("%", "%%")


def _describe(error: ValidationError, name_flag: Callable[[str], str]) -> str:
    """Say which flags are wrong and why, without their values: one of them may be a key."""
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(
        f"{name_flag(str(problem['loc'][0]))}: {_message(problem['type'], problem['msg'])}"
        for problem in problems
    )


def _message(kind: str, message: str) -> str:
    if kind == "missing":
        return "required"
    return message.removeprefix("Value error, ")
