"""Text from tokens, and stop strings wherever they lie."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.errors import DetokenizationError
from latentwire_service.engine.hf.loader import load_model
from support.tiny_models import EOS, build_tokenizer

TEXTS = ["Wash the mug.", "naïve café", "日本語のお茶", "🫖🍵 tea", "a\n\nb\tc", "  two  spaces  "]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def feed(tokenizer: Any, token_ids: list[int], *stop: str) -> int | None:
    """Return how many tokens were taken when a stop string was seen; None when none was."""
    detokenizer = Detokenizer(tokenizer, stop)
    for number, token_id in enumerate(token_ids, start=1):
        if detokenizer.append(token_id):
            return number
    return None


def assert_stops_at_the_end_of_each_part(tokenizer: Any, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    for start in range(len(text)):
        for end in range(start + 1, min(start + 6, len(text)) + 1):
            stop = text[start:end]
            complete = next(
                n for n in range(len(token_ids) + 1) if stop in tokenizer.decode(token_ids[:n])
            )
            assert feed(tokenizer, token_ids, stop) == complete, (text, stop)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stop_string_is_seen_with_its_last_token(tokenizer: Any, text: str) -> None:
    assert_stops_at_the_end_of_each_part(tokenizer, text)


@pytest.mark.slow
@pytest.mark.demo_model
def test_a_stop_string_is_seen_with_its_last_token_of_a_real_tokenizer() -> None:
    cache = Path.home() / ".cache/latentwire"
    loaded = load_model("demo", device=torch.device("cpu"), dtype=torch.float32, cache_dir=cache)
    for text in TEXTS:
        assert_stops_at_the_end_of_each_part(loaded.tokenizer, text)


def test_a_stop_string_after_a_character_of_several_tokens_is_found(tokenizer: Any) -> None:
    token_ids = tokenizer.encode("🫖END")
    assert len(token_ids) == 7
    assert feed(tokenizer, token_ids, "END") == 7
    assert feed(tokenizer, token_ids, "🫖") == 4


def test_a_stop_string_after_invalid_bytes_is_found(tokenizer: Any) -> None:
    lone_byte = tokenizer.encode("é")[:1]
    token_ids = [*lone_byte * 5, *tokenizer.encode("END"), *lone_byte]
    assert feed(tokenizer, token_ids, "END") == 8


def test_any_of_several_stop_strings_stops(tokenizer: Any) -> None:
    assert feed(tokenizer, tokenizer.encode("abcdef"), "never", "ef", "cd") == 4


def test_a_stop_string_across_many_tokens_is_seen(tokenizer: Any) -> None:
    text = "x" * 50 + "a long stop string, byte by byte" + "y"
    stop = text[50:-1]
    assert feed(tokenizer, tokenizer.encode(text), stop) == len(text) - 1


def test_without_stop_strings_nothing_stops(tokenizer: Any) -> None:
    assert feed(tokenizer, tokenizer.encode("anything")) is None


def test_the_final_text_is_cut_before_the_first_stop_string(tokenizer: Any) -> None:
    token_ids = tokenizer.encode("one two three two")
    assert Detokenizer(tokenizer, ["three", " two"]).final_text(token_ids) == "one"
    assert Detokenizer(tokenizer, ["one"]).final_text(token_ids) == ""
    assert Detokenizer(tokenizer, ["four"]).final_text(token_ids) == "one two three two"


def test_the_final_text_leaves_special_tokens_out(tokenizer: Any) -> None:
    token_ids = [*tokenizer.encode("done"), EOS]
    assert Detokenizer(tokenizer, []).final_text(token_ids) == "done"
    assert feed(tokenizer, token_ids, "<eos>") is None


class PieceTokenizer:
    """Token n reads `pieces[n]`, as bytes: some vocabularies join a space and half a character."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.longest_decode = 0

    def decode(self, token_ids: Sequence[int], /, **_options: bool) -> str:
        self.longest_decode = max(self.longest_decode, len(token_ids))
        return b"".join(self.pieces[token_id] for token_id in token_ids).decode(errors="replace")


def test_a_stop_string_is_seen_in_a_token_that_also_begins_a_character() -> None:
    tokenizer = PieceTokenizer(b"word", b" \xc3")
    detokenizer = Detokenizer(tokenizer, [" "])
    assert not detokenizer.append(0)
    assert detokenizer.append(1)
    assert detokenizer.final_text([0, 1]) == "word"


def test_bytes_that_never_complete_a_character_are_decoded_a_bounded_number_of_times() -> None:
    tokenizer = PieceTokenizer(b"\xc3", b"END")
    detokenizer = Detokenizer(tokenizer, ["END"])
    assert not any(detokenizer.append(0) for _ in range(500))
    assert detokenizer.append(1)
    assert tokenizer.longest_decode < 20


def streamed(tokenizer: Any, token_ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """What each token adds to the text, up to the one that stops it."""
    detokenizer = Detokenizer(tokenizer, stop, is_streaming=True)
    texts = []
    for position, token_id in enumerate(token_ids, start=1):
        is_last = detokenizer.append(token_id) or position == len(token_ids)
        texts.append(detokenizer.take_text(token_ids[:position] if is_last else None))
        if is_last:
            break
    return texts


@pytest.mark.parametrize("text", ["plain", "é 你好 🫖!", "a\u2028b", "🫖", " x  y "])
def test_a_character_is_returned_with_its_last_token(text: str) -> None:
    tokenizer = build_tokenizer()
    texts = streamed(tokenizer, tokenizer.encode(text))
    assert "".join(texts) == text
    assert not any("\ufffd" in part for part in texts)
    assert len(texts) == len(text.encode())


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("aaab", ("aab",), "a"),
        ("x\n\ny", ("\n\n", "zzz"), "x"),
        ("no end E", ("END",), "no end E"),
        ("é🫖é", ("🫖",), "é"),
        ("abcabd", ("abd", "bcx"), "abc"),
    ],
)
def test_no_part_of_a_stop_string_is_ever_returned(
    text: str, stop: tuple[str, ...], expected: str
) -> None:
    tokenizer = build_tokenizer()
    assert "".join(streamed(tokenizer, tokenizer.encode(text), stop)) == expected


def test_random_bytes_join_to_the_final_text() -> None:
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for _ in range(50):
        token_ids = [rng.randrange(2, 258) for _ in range(40)]
        stop = tuple(chr(rng.randrange(32, 127)) * rng.randint(1, 2) for _ in range(2))
        texts = streamed(tokenizer, token_ids, stop)
        final = Detokenizer(tokenizer, stop).final_text(token_ids[: len(texts)])
        assert "".join(texts) == final


class Contrary:
    """Decodes a run of bytes differently once an invalid one follows, like byte fallback."""

    def decode(self, token_ids: Sequence[int], /, **_options: bool) -> str:
        return "\ufffd" * len(token_ids) + "!" if 9 in token_ids else "a" * len(token_ids)


def test_a_text_whose_beginning_changes_gets_no_rest() -> None:
    assert "".join(streamed(Contrary(), [1, 2, 9])) == "aa"


def test_a_tokenizer_that_fails_is_named() -> None:
    class Broken:
        def decode(self, _ids: Sequence[int], /, **_options: bool) -> str:
            raise KeyError("x")

    with pytest.raises(DetokenizationError):
        Detokenizer(Broken(), ("x",)).append(1)
