"""Command line to settings: one flag per field of a pydantic-settings class.

The command line of pydantic-settings itself is not used: it splits the value of a repeated flag at
commas, which keys and stop strings may hold, and turns the field `k` into `-k`.

Needs pydantic-settings, which the extras `service` and `batch` install.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from latentwire.validation import describe

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

SettingsT = TypeVar("SettingsT", bound="BaseSettings")

_METAVARS = {"int": "N", "float": "X", "Path": "PATH"}


class FlagError(Exception):
    """A flag or an environment variable cannot be used; the text names it."""


class FlagParser(argparse.ArgumentParser):
    """Raises `FlagError` instead of exiting, so that a command reports every error alike."""

    def error(self, message: str) -> NoReturn:
        """Raise FlagError."""
        raise FlagError(message)


def parse_settings(
    settings_type: type[SettingsT], args: Sequence[str], prog: str, description: str
) -> SettingsT:
    """Parse a command line.

    A flag wins over an environment variable, which wins over the field's default. A list field is
    set by repeating its flag; a flag's value is never split.

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
        prog=prog, description=description, epilog=_epilog(settings_type), allow_abbrev=False
    )
    for name, field in settings_type.model_fields.items():
        _add_flag(parser, name, field)
    return make_settings(settings_type, vars(parser.parse_args(args)), flag_of)


def make_settings(
    settings_type: type[SettingsT], given: Mapping[str, Any], name_flag: Callable[[str], str]
) -> SettingsT:
    """Make settings from the values of a command line.

    Args:
        settings_type: the settings' class.
        given: values by field; may still be text.
        name_flag: returns the flag of a field.

    Raises:
        FlagError: naming the flag and what is wrong with it.
    """
    from pydantic_settings import SettingsError

    try:
        return settings_type(**given)
    except ValidationError as error:
        raise FlagError(describe(error, lambda loc: name_flag(str(loc[0])))) from error
    except SettingsError as error:
        raise FlagError(str(error)) from error


def flag_of(name: str) -> str:
    """Return the flag that sets a field: `top_p` is set by `--top-p`."""
    return "--" + name.replace("_", "-")


def _epilog(settings_type: type[BaseSettings]) -> str:
    prefix = settings_type.model_config.get("env_prefix", "")
    return (
        f"Each flag can also be set by an environment variable: {prefix} and the flag's name in "
        "capitals, with underscores. The flag wins. Repeat a flag to give it several values: a "
        "flag's value is never split."
    )


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    # Absent flags stay out of the namespace: the environment and the defaults come after them.
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
    if field.annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = "|".join(_metavars(field.annotation))
        if get_origin(field.annotation) is tuple:
            options["action"] = "append"
    parser.add_argument(flag_of(name), dest=name, **options)


def _metavars(annotation: Any) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _metavars(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for choice in get_args(annotation):
            if choice is not type(None):
                yield from _metavars(choice)
    elif origin is Literal:
        yield from map(str, get_args(annotation))
    else:
        yield _METAVARS.get(getattr(annotation, "__name__", ""), "TEXT")


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required():
        text += " Required."
    elif field.default is True:
        text += " Default: yes."
    elif field.default not in (None, (), False):
        text += f" Default: {_shown(field.default)}."
    return text.replace("%", "%%")


def _shown(default: object) -> str:
    """Return a default as it would be typed, with line breaks escaped."""
    return str(default).replace("\n", "\\n")
