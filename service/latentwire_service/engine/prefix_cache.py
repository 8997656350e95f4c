"""Prompt prefixes whose keys and values are kept, so that a template is computed once.

Plain Python: which prefixes there are and what they share with a prompt. The keys and values
themselves are the model runner's, under the prefix's number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

# Templates in use at the same time, and positions that all of them may have; their memory is set
# aside when slots are planned.
MAX_PREFIXES = 4
MAX_PREFIX_TOKENS = 2048
# Below this, copying keys and values saves nothing worth the bookkeeping.
MIN_PREFIX_TOKENS = 8


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The first `num_tokens` positions of a kept prefix are those of a prompt."""

    prefix_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """A prefix to keep, taken from a prompt just computed, and those that make room for it."""

    prefix_id: int
    num_tokens: int
    evicted_ids: Sequence[int]


class PrefixCache:
    """Learns the longest prefix that consecutive prompts share; forgets the least recently used.

    Args:
        max_tokens: positions of all kept prefixes together; of a longer one, the first are kept.
    """

    def __init__(self, max_tokens: int = MAX_PREFIX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._prefixes: OrderedDict[int, Sequence[int]] = OrderedDict()
        self._last_prompt: Sequence[int] = ()
        self._next_id = 0

    def match(self, prompt: Sequence[int]) -> PrefixMatch | None:
        """Return the longest usable match.

        The last prompt position is never part of it: its hidden state is row 0 of the latent.
        """
        best: PrefixMatch | None = None
        for prefix_id, token_ids in self._prefixes.items():
            shared = min(num_shared(prompt, token_ids), len(prompt) - 1)
            if shared >= MIN_PREFIX_TOKENS and (best is None or shared >= best.num_tokens):
                best = PrefixMatch(prefix_id, shared)
        if best is not None:
            self._prefixes.move_to_end(best.prefix_id)
        return best

    def observe(self, prompt: Sequence[int]) -> PrefixChange | None:
        """Take note of a prompt just computed; say what of it is to be kept, if anything."""
        shared = min(num_shared(prompt, self._last_prompt), self._max_tokens)
        self._last_prompt = prompt
        known = self.match(prompt)
        if shared < MIN_PREFIX_TOKENS or (known is not None and known.num_tokens >= shared - 1):
            return None
        evicted_ids = []
        while self._prefixes and not self._has_room(shared):
            evicted_ids.append(self._prefixes.popitem(last=False)[0])
        prefix_id = self._next_id
        self._next_id += 1
        self._prefixes[prefix_id] = prompt[:shared]
        return PrefixChange(prefix_id, shared, evicted_ids)

    def _has_room(self, num_tokens: int) -> bool:
        num_kept = sum(map(len, self._prefixes.values()))
        return len(self._prefixes) < MAX_PREFIXES and num_kept + num_tokens <= self._max_tokens


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
