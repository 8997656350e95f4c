"""docs/limits.md names flags and tests that exist."""

from __future__ import annotations

import re

import pytest

from latentwire_service.settings import Settings
from support.markdown import DOCS, ROOT

TEXT = DOCS["limits.md"].text
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", TEXT)


def test_every_limit_names_a_test() -> None:
    shown_by = DOCS["limits.md"].column("Limit", 3)
    assert len(shown_by) > 10
    assert all(re.search(r"`[\w/]+\.py(::\w+)?`", cell) for cell in shown_by)


@pytest.mark.parametrize(("file", "name"), NAMED or [("nothing is named", "")])
def test_a_named_test_exists(file: str, name: str) -> None:
    source = (ROOT / "tests" / file).read_text()
    assert not name or re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE)


def test_named_flags_exist() -> None:
    flags = {flag[2:].replace("-", "_") for flag in re.findall(r"`(--[a-z-]+)`", TEXT)}
    assert flags
    assert flags <= set(Settings.model_fields)
