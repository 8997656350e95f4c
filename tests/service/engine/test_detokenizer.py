"""Text from tokens, and stop strings wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.loader import load_model
from tiny_models import EOS, build_tokenizer

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


@pytest.mark.demo_model
def test_a_stop_string_is_seen_with_its_last_token_of_a_real_tokenizer() -> None:
    cache = Path.home() / ".cache/latentwire"
    loaded = load_model("demo", device=torch.device("cpu"), dtype=torch.float32, cache_dir=cache)
    for text in TEXTS:
        assert_stops_at_the_end_of_each_part(loaded.tokenizer, text)


def test_characters_of_several_tokens_do_not_hide_what_follows(tokenizer: Any) -> None:
    token_ids = tokenizer.encode("🫖END")
    assert len(token_ids) == 7
    assert feed(tokenizer, token_ids, "END") == 7
    assert feed(tokenizer, token_ids, "🫖") == 4


def test_bytes_that_are_no_character_do_not_hide_what_follows(tokenizer: Any) -> None:
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
