"""The wording of a wrong value: one table for the command line, the client and HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentwire.validation import describe


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    slots: Literal["auto"] | Annotated[int, Field(ge=1)] = 1
    count: int = Field(default=1, ge=1, le=9)
    share: float = Field(default=0.5, gt=0, le=1.0, allow_inf_nan=False)
    is_on: bool = True
    form: Literal["auto", "none", "qwen"] = "auto"
    name: str = Field(default="a", min_length=1, max_length=3)
    parts: list[str] = Field(default=[], max_length=1)
    words: list[str] = Field(default=["a"], min_length=1)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("slots", 0, "must be auto or a whole number of at least 1"),
        ("slots", "many", "must be auto or a whole number"),
        ("count", 0, "must be at least 1"),
        ("count", "10", "must be at most 9"),
        ("count", 1.5, "must be a whole number"),
        ("count", "1" * 5000, "has too many digits"),
        ("share", 0, "must be above 0"),
        ("share", 2, "must be at most 1"),
        ("share", "half", "must be a number"),
        ("share", "nan", "must be a finite number"),
        ("is_on", "perhaps", "must be true or false"),
        ("form", "llama", "must be one of auto, none, qwen"),
        ("name", "", "must not be empty"),
        ("name", "abcd", "must have at most 3 characters"),
        ("name", 3, "must be text"),
        ("parts", ["a", "b"], "must have at most 1 entry"),
        ("parts", 1, "must be a list"),
        ("words", [], "must not be empty"),
        ("other", 1, "unknown field"),
    ],
)
def test_a_wrong_value_is_one_sentence(field: str, value: Any, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model(**{field: value})
    assert describe(caught.value) == f"{field}: {reason}"


def test_every_wrong_field_is_named_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"slots": -1, "count": "x", "form": 1})
    assert describe(caught.value, lambda loc: f"--{loc[0]}") == (
        "--slots: must be auto or a whole number of at least 1; --count: must be a whole number; "
        "--form: must be one of auto, none, qwen"
    )
