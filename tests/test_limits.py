"""docs/limits.md names tests and flags that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentwire_service.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "limits.md").read_text()


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`([\w/]+\.py(?:::\w+)?)`", TEXT))))
def test_a_named_test_exists(named: str) -> None:
    file, _, name = named.partition("::")
    source = (ROOT / "tests" / file).read_text()
    assert f"def {name}(" in source or not name


def test_named_flags_exist() -> None:
    flags = {flag[2:].replace("-", "_") for flag in re.findall(r"`(--[a-z-]+)`", TEXT)}
    assert flags
    assert flags <= set(Settings.model_fields)
