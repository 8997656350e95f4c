"""Command line to settings: `latentwire.settings_flags` with this package's errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from latentwire import settings_flags
from latentwire.settings_flags import FlagError, FlagParser, SettingsT
from latentwire_batch.errors import UsageError


def parse_settings(
    settings_type: type[SettingsT], args: Sequence[str], prog: str, description: str
) -> SettingsT:
    """Parse a command line: see `settings_flags.parse_settings`.

    Raises:
        UsageError: naming the flag and what is wrong with it.
        SystemExit: with status 0, after `--help` was printed.
    """
    try:
        return settings_flags.parse_settings(settings_type, args, prog, description)
    except FlagError as error:
        raise UsageError(str(error)) from error


def make_settings(
    settings_type: type[SettingsT], given: Mapping[str, Any], name_flag: Callable[[str], str]
) -> SettingsT:
    """Make settings from the values of a command line: see `settings_flags.make_settings`.

    Raises:
        UsageError: naming the flag and what is wrong with it.
    """
    try:
        return settings_flags.make_settings(settings_type, given, name_flag)
    except FlagError as error:
        raise UsageError(str(error)) from error


class Parser(FlagParser):
    """Raises this package's UsageError instead of exiting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(exit_on_error=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)


def listed(text: str) -> tuple[str, ...] | None:
    """Read the value of a variable that is a JSON list of texts; None when it is not one.

    Args:
        text: the variable's value.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return tuple(values) if is_list else None
