from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.json_list import list_elements


class CountedText(io.StringIO):
    """A text file that counts what is read from it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.num_reads = 0
        self.num_chars = 0

    def read(self, size: int | None = -1) -> str:
        text = super().read(size)
        self.num_reads += 1
        self.num_chars += len(text)
        return text


class EndlessList(io.StringIO):
    """A list of `num_elements` objects that is never in memory as a whole."""

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        self._parts = self._make(num_elements)

    def _make(self, num_elements: int) -> Iterator[str]:
        yield '[{"task": "first"}'
        for _ in range(num_elements - 1):
            yield ',{"task": "' + "x" * 1000 + '"}'
        yield "]"

    def read(self, size: int | None = -1) -> str:
        del size
        return next(self._parts, "")


def elements(text: str, chunk_chars: int = 100) -> list[Any]:
    return list(list_elements(CountedText(text), chunk_chars, max_token_chars=20))


@pytest.mark.parametrize("chunk_chars", [1, 2, 7, 100, 1 << 16])
def test_where_the_file_is_cut_into_chunks_does_not_matter(chunk_chars: int) -> None:
    values = [{"task": f'"{"ü" * i}\\', "n": [i, 1.5, True, None]} for i in range(30)]
    text = json.dumps(values, indent=1, ensure_ascii=False)
    assert elements(text, chunk_chars) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": ?}]', r"row 1: not JSON \(Expecting value\)"),
        ('[{"a": 1}, {"a"}]', r"row 1: not JSON \(Expecting ':' delimiter\)"),
        ('[{"a": 1}, {"a": "b', r"row 1: not JSON \(Unterminated string"),
        ('[{"a": 1},]', "row 1: not JSON"),
        ('[{"a": 1}', "the end of the file where ',' was expected"),
        ('[{"a": 1}}', "'}' where ',' was expected"),
        ('[{"a": 1}] x', "more text follows the end of the JSON list"),
        ("[", "row 0: not JSON"),
        ("", "the end of the file where '\\[' was expected"),
    ],
)
@pytest.mark.parametrize("chunk_chars", [1, 100])
def test_an_error_names_its_place(text: str, message: str, chunk_chars: int) -> None:
    with pytest.raises(InputError, match=message):
        elements(text, chunk_chars)


def test_the_elements_before_an_error_are_yielded() -> None:
    values = list_elements(CountedText('[{"a": 1}, {"b": 2}, ?]'))
    assert [next(values), next(values)] == [{"a": 1}, {"b": 2}]
    with pytest.raises(InputError, match="row 2"):
        next(values)


def test_memory_is_bounded_by_one_element() -> None:
    tracemalloc.start()
    try:
        # 20 MB of text.
        num_elements = sum(1 for _ in list_elements(EndlessList(20_000)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_elements == 20_000
    assert peak_bytes < 2_000_000


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters held at each attempt to decode an element."""
    sizes: list[int] = []

    class CountingDecoder(json.JSONDecoder):
        def raw_decode(self, text: str, idx: int = 0) -> tuple[Any, int]:
            sizes.append(len(text))
            return super().raw_decode(text, idx)

    monkeypatch.setattr("latentwire_batch.tasks.json_list.json.JSONDecoder", CountingDecoder)
    return sizes


def test_a_broken_element_is_decoded_once_and_the_rest_of_the_file_is_not_read(
    decoded_sizes: list[int],
) -> None:
    file = CountedText('[{"task": ?' + " " * 100_000)
    with pytest.raises(InputError, match="row 0: not JSON"):
        list(list_elements(file, 100, max_token_chars=20))
    assert file.num_chars == 100
    assert len(decoded_sizes) == 1


@pytest.mark.parametrize("element", ['{"task": [' + "1, " * 30_000, '{"task": "' + "a" * 100_000])
def test_the_work_on_a_long_element_is_linear(element: str, decoded_sizes: list[int]) -> None:
    file = CountedText("[" + element)
    with pytest.raises(InputError, match="row 0: not JSON"):
        list(list_elements(file, 100, max_token_chars=20))
    # Each read doubles what is held, so that decoding it again stays linear.
    assert file.num_chars == len(element) + 1
    assert file.num_reads <= 13
    assert len(decoded_sizes) <= 12
    assert sum(decoded_sizes) <= 4 * len(element)
