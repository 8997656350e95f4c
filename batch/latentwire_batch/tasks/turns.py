"""Conversations: the text of one turn.

`conversations` with `from` and `value`, and `messages` with `role` and `content`, mean the same.
"""

from __future__ import annotations

from typing import Any

from latentwire_batch.errors import InputError

# The first that a record has is read.
CONVERSATION_FIELDS = ("conversations", "messages")
_TEXT_FIELDS = ("value", "content")
_TEXT_PARTS = ("text", "input_text", "output_text", None)


def turn_text(field: str, turns: Any, index: int) -> tuple[str, Any]:
    """Return the text of one turn.

    Args:
        field: name of the conversation's field.
        turns: its value.
        index: of the turn, counted from 0; a system message counts like any other turn.

    Returns:
        The place of the text in words, and the value there, which may not be text.

    Raises:
        InputError: when there is no such turn, or it has no text.
    """
    if not isinstance(turns, list):
        raise InputError(f"field {field!r} is not a list")
    if index >= len(turns):
        raise InputError(
            f"field {field!r} has {len(turns)} turns, counted from 0, and none at {index}"
        )
    turn, place = turns[index], f"field {field}[{index}]"
    is_object = isinstance(turn, dict)
    # A column of Arrow data has every field in every turn, and null where the input had none.
    present = [name for name, value in turn.items() if value is not None] if is_object else []
    given = [name for name in _TEXT_FIELDS if name in present]
    if not given:
        shown = ", ".join(map(repr, present)) if is_object else f"{type(turn).__name__} alone"
        raise InputError(f"{place} has neither 'value' nor 'content', but {shown or 'no fields'}")
    name = given[0]
    value = turn[name]
    place = f"{place}[{name!r}]"
    parts = [value] if isinstance(value, dict) and "type" in value else value
    return place, _joined(parts, place) if isinstance(parts, list) else value


def _joined(parts: list[Any], place: str) -> str:
    """Join the text parts of a content."""
    texts: list[str] = []
    for part in parts:
        text = part if isinstance(part, str) else None
        if isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
            text = part.get("text")
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InputError(f"{place} has a part that is not text but {kind!r}")
        texts.append(text)
    return "".join(texts)
