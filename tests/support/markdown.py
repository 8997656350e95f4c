"""The project's Markdown pages, read the way GitHub reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Page:
    """One page; `name` is its path from the repository's root."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def prose(self) -> str:
        """The text without code blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        return [body for name, body in _FENCE.findall(self.text) if name == language]

    def section(self, heading: str) -> str:
        """The text under a heading, up to the next one."""
        found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", self.prose_or_code, _FLAGS)
        assert found, f"{self.name} has no heading {heading!r}"
        return found[1]

    @cached_property
    def prose_or_code(self) -> str:
        """The text, where a comment in a code block is not taken for a heading."""
        return _FENCE.sub(lambda block: re.sub(r"^#", " #", block[0], flags=re.M), self.text)

    def column(self, head: str, column: int) -> list[str]:
        """The cells of one column of the tables whose first head cell is `head`."""
        cells = []
        table_pattern = rf"^\| {re.escape(head)} \|.*?(?=\n\n|\Z|\n<!--)"
        for table in re.findall(table_pattern, self.text, _FLAGS):
            rows = table.splitlines()[2:]
            cells += [row.strip("| ").split(" | ")[column].strip() for row in rows]
        assert cells, f"{self.name} has no table {head!r}"
        return cells

    @cached_property
    def anchors(self) -> set[str]:
        """The fragments that a link may name."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def links(self) -> Iterator[tuple[Path, str]]:
        """Paths and fragments of the links to files of the repository."""
        for target in re.findall(r"\]\(([^)\s]+)\)", self.prose):
            if "://" not in target:
                path, _, fragment = target.partition("#")
                yield ((self.path.parent / path).resolve() if path else self.path), fragment

    def shell_lines(self) -> list[str]:
        """The commands of the page's shell blocks, one line each."""
        joined = "".join(self.blocks("sh")).replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip()]


_FLAGS = re.MULTILINE | re.DOTALL

README = Page("README.md")
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
DOCS = {path.name: Page(f"docs/{path.name}") for path in sorted((ROOT / "docs").glob("*.md"))}
ADRS = [Page(f"docs/adr/{path.name}") for path in sorted((ROOT / "docs/adr").glob("*.md"))]
PAGES = [*map(Page, TOP_PAGES), *DOCS.values(), *ADRS, Page("benchmarks/README.md")]
