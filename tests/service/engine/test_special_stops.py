"""Stop strings that special tokens are part of, and stop tokens: where the plan ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire_service.engine.detokenizer import Detokenizer, SpecialToken

SPECIAL = {
    0: SpecialToken("<|im_end|>"),
    1: SpecialToken("<|end|>", takes_right=True),
    2: SpecialToken("<|l|>", takes_left=True),
    3: SpecialToken("<|im_start|>"),
}
TEXTS = {**{n: token.text for n, token in SPECIAL.items()}, 4: "Go", 5: " on", 6: "\n", 7: "user"}
TEXTS |= {8: " END", 9: "<|fake"}


class Pieces:
    """Token n reads `TEXTS[n]`; special tokens are left out on demand."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = False) -> str:
        kept = [n for n in token_ids if not (skip_special_tokens and n in SPECIAL)]
        return "".join(TEXTS[n] for n in kept)


def run(
    token_ids: Sequence[int], stop: Sequence[str], stop_token_ids: Sequence[int] = ()
) -> tuple[str, int, str]:
    """The plan, the number of tokens that were needed, and the joined steps of a stream."""
    detokenizer = Detokenizer(
        Pieces(), stop, stop_token_ids=stop_token_ids, special=SPECIAL, is_streaming=True
    )
    taken, streamed = [], ""
    for token_id in token_ids:
        taken.append(token_id)
        is_last = detokenizer.append(token_id) or len(taken) == len(token_ids)
        streamed += detokenizer.take_text(taken if is_last else None)
        if is_last:
            break
    return detokenizer.final_text(taken), len(taken), streamed


@pytest.mark.parametrize(
    ("token_ids", "stop", "plan", "num_tokens"),
    [
        ([4, 5, 0, 4], ["<|im_end|>"], "Go on", 3),
        ([0, 4], ["<|im_end|>"], "", 1),
        ([4, 1, 4], ["<|end|>\n"], "Go", 2),
        ([4, 2, 4], [" <|l|>"], "Go", 2),
        ([4, 0, 4], [" <|im_end|>"], "GoGo", 3),
        ([4, 0, 6, 4], ["<|im_end|>\n"], "Go", 3),
        ([4, 0, 7, 4], ["<|im_end|>\n"], "GouserGo", 4),
        ([4, 5, 0, 4], ["n<|im_end|>"], "Go o", 3),
        ([4, 0, 6, 3, 7, 4], ["<|im_end|>\n<|im_start|>us"], "Go", 5),
        ([4, 3, 5, 0, 4], ["on<|im_end|>"], "Go ", 4),
        ([4, 0, 6, 3, 4], ["\n<|im_start|>", "absent"], "Go", 4),
        ([4, 8, 5], [" END", "<|im_end|>"], "Go", 2),
        ([9, 5], ["<|im_end|>"], "<|fake on", 2),
        ([4, 5, 1, 0], ["<|im_end|>", "<|end|>"], "Go on", 3),
    ],
)
def test_a_stop_string_matches_special_tokens(
    token_ids: list[int], stop: list[str], plan: str, num_tokens: int
) -> None:
    assert run(token_ids, stop) == (plan, num_tokens, plan)


@pytest.mark.parametrize("stop", [[], ["absent"], ["<|im_end|>"]])
def test_a_stop_token_ends_the_plan_before_its_text(stop: list[str]) -> None:
    assert run([4, 5, 8, 4], stop, [8, 3]) == ("Go on", 3, "Go on")
    assert run([4, 3, 8], stop, [8, 3]) == ("Go", 2, "Go")


tokens = st.sampled_from(sorted(TEXTS))


def as_characters(token_id: int) -> str:
    """The text of a token; one character of its own for a special token, which has no parts."""
    return chr(0xE000 + token_id) if token_id in SPECIAL else TEXTS[token_id]


@given(st.lists(tokens, max_size=12), st.lists(tokens, min_size=1, max_size=4), st.integers(0, 3))
def test_the_plan_ends_before_the_first_occurrence(
    token_ids: list[int], pieces: list[int], skipped: int
) -> None:
    # Special tokens match as a whole; text may begin anywhere.
    skipped = 0 if pieces[0] in SPECIAL else min(skipped, len(TEXTS[pieces[0]]) - 1)
    plan, num_tokens, streamed = run(token_ids, ["".join(TEXTS[n] for n in pieces)[skipped:]])
    assert streamed == plan
    stop = "".join(map(as_characters, pieces))[skipped:]
    texts = ["".join(map(as_characters, token_ids[: n + 1])) for n in range(len(token_ids))]
    first = next((n + 1 for n, text in enumerate(texts) if stop in text), None)
    if first is not None:
        # Never later than the stop string in the text with its special tokens.
        assert num_tokens <= first
        assert Pieces().decode(token_ids, skip_special_tokens=True).startswith(plan)
