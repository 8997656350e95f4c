"""The README: what a newcomer reads, in which order, and the number that it quotes."""

from __future__ import annotations

import re

from support.markdown import DOCS, README, ROOT, Page

HEADINGS = [
    "Why",
    "How it works",
    "Two commands",
    "Request a plan",
    "What a latent is",
    "Make a dataset",
    "Serve on a GPU",
    "Documentation",
]


def test_sections_come_in_the_order_of_a_newcomers_questions() -> None:
    assert re.findall(r"^## (.+)$", README.prose, re.MULTILINE) == HEADINGS


def test_it_is_short_enough_to_be_finished() -> None:
    assert len(README.text.splitlines()) <= 170


def test_the_two_commands_are_two() -> None:
    (first, *_) = README.blocks("sh")
    assert first == "make demo\nmake test\n"


def test_first_python_example_is_five_lines() -> None:
    assert len(README.blocks("python")[0].strip().splitlines()) == 5


def test_it_has_one_picture() -> None:
    assert len(README.blocks("mermaid")) == 1


def test_its_map_leads_to_every_page() -> None:
    linked = {path for path, _ in README.links()}
    assert {page.path for page in DOCS.values()} <= linked
    assert ROOT / "docs/adr" in linked


def test_the_quoted_speed_was_measured() -> None:
    (quoted,) = re.findall(r"generates (\d+) times as many tokens", README.text)
    measured = Page("benchmarks/README.md").section("The engine")
    (loop,) = re.findall(r"^\| `research-loop` \|(.*)$", measured, re.MULTILINE)
    assert f"({quoted})" in loop.split("|")[0]


def test_the_rows_of_its_example_are_those_of_its_answer() -> None:
    """The table shows 4 tokens, and the answer above it generated 4."""
    predicted = [cell.strip("`") for cell in README.column("Row", 2)]
    assert "".join(predicted) == "To clean the kettle"
    assert '"plan": "To clean the kettle"' in README.text
    assert '"completion_tokens": 4' in README.text
