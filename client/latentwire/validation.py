"""One wording for pydantic's `ValidationError`, for error messages of every package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError

Location = Sequence[str | int]


def describe(
    error: ValidationError, name_of: Callable[[Location], str] = lambda loc: dotted(loc)
) -> str:
    """Say in one line which fields are wrong and why.

    The values stay out of the message because one of them may be a key.

    Args:
        error: what validation found.
        name_of: names a field by its location; an empty name is left out.
    """
    return "; ".join(
        ": ".join(filter(None, (name_of(problem["loc"]), reason(problem["type"], problem["msg"]))))
        for problem in error.errors(include_url=False, include_input=False)
    )


def dotted(location: Location) -> str:
    """Name a field by its path: `("stop", 0)` is `stop.0`."""
    return ".".join(map(str, location))


def reason(kind: str, message: str) -> str:
    """Return why one field is wrong.

    Args:
        kind: pydantic's type of the problem.
        message: pydantic's message.
    """
    return "required" if kind == "missing" else message.removeprefix("Value error, ")
