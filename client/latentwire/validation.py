"""One wording for pydantic's errors, for error messages of every package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import ValidationError

Location = Sequence[str | int]

_WHOLE_NUMBER = "must be a whole number"
_NUMBER = "must be a number"
_TRUTH = "must be true or false"
_TEXT = "must be text"
_LIST = "must be a list"
_OBJECT = "must be an object"
# By pydantic's type of the problem. A name in braces is a member of the problem's context.
_REASONS: Mapping[str, str] = {
    "missing": "required",
    "missing_argument": "required",
    "extra_forbidden": "unknown field",
    "json_invalid": "not valid JSON",
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "int_parsing_size": "has too many digits",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "string_type": _TEXT,
    "string_unicode": "must be Unicode text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "list_type": _LIST,
    "tuple_type": _LIST,
    "dict_type": _OBJECT,
    "mapping_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "path_type": "must be a path",
    "none_required": "must be null",
}


def describe(
    error: ValidationError, name_of: Callable[[Location], str] = lambda loc: dotted(loc)
) -> str:
    """Describe in one line which fields are wrong and why.

    The values stay out of the message because one of them may be a key.

    Args:
        error: what validation found.
        name_of: names a field by its location; an empty name is left out.
    """
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(
        ": ".join(filter(None, (name_of(location), text))) for location, text in _merged(problems)
    )


def dotted(location: Location) -> str:
    """Name a field by its path: `("stop", 0)` is `stop.0`.

    Names in `<>` are alternatives of a union, not fields.
    """
    return ".".join(part for part in map(str, location) if not part.startswith("<"))


def reason(problem: Mapping[str, Any]) -> str:
    """Return why one field is wrong.

    Args:
        problem: an entry of `ValidationError.errors()`.
    """
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        choices = _choices(problem)
        return f"must be one of {choices}" if "," in choices else f"must be {choices}"
    if kind in ("string_too_short", "too_short") and context.get("min_length") == 1:
        return "must not be empty"
    if kind == "too_long" and context.get("max_length") == 1:
        return "must have at most 1 entry"
    if kind in _REASONS:
        return _REASONS[kind].format_map({name: _plain(value) for name, value in context.items()})
    return str(problem["msg"]).removeprefix("Value error, ")


def _merged(problems: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Location, str]]:
    """Yield each wrong field once: pydantic reports every alternative of a union by itself.

    The last part of such a location names the alternative, `literal[...]` or a type.
    """
    locations = [problem["loc"] for problem in problems if problem["loc"]]
    unions = {loc[:-1] for loc in locations if str(loc[-1]).startswith("literal[")}

    def field(problem: Mapping[str, Any]) -> Location:
        location: tuple[str | int, ...] = problem["loc"]
        return location[:-1] if location[:-1] in unions else location

    for location, group in groupby(problems, field):
        alternatives = list(group)
        if len(alternatives) == 1:
            yield location, reason(alternatives[0])
        else:
            yield location, "must be " + " or ".join(map(_alternative, alternatives))


def _alternative(problem: Mapping[str, Any]) -> str:
    """Describe what one alternative of a union accepts, to follow "must be"."""
    if problem["type"] == "literal_error":
        return _choices(problem)
    text = reason(problem).removeprefix("must be ")
    has_bound = problem["type"] in ("greater_than_equal", "less_than_equal")
    return f"a whole number of {text}" if has_bound and "int" in problem["loc"][-1] else text


def _choices(problem: Mapping[str, Any]) -> str:
    """List the values that are accepted, from text such as `'auto', 'none' or 'qwen'`."""
    return str(problem["ctx"]["expected"]).replace(" or ", ", ").replace("'", "")


def _plain(value: object) -> object:
    """Return 1.0 as 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
