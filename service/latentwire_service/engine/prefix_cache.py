"""Prompt prefixes whose keys and values are kept, so that a template is computed once.

Plain Python: it knows which prefixes are kept and what they share with a prompt. The model runner
holds their keys and values, each under the prefix's number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from latentwire_service.engine.prompt import Prompt

# Limits of what is kept: templates, and positions of all of them together. Their memory is set
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
    """A prefix to keep, taken from a prompt just computed, and the ones to drop for it."""

    prefix_id: int
    num_tokens: int
    evicted_ids: Sequence[int]


class PrefixCache:
    """Learns the longest prefix that consecutive prompts share; drops the least recently used.

    Args:
        max_tokens: positions of all kept prefixes together; a longer prefix is cut to them.
    """

    def __init__(self, max_tokens: int = MAX_PREFIX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._prefixes: OrderedDict[int, Prompt] = OrderedDict()
        self._last_prompt = Prompt(())
        self._next_id = 0

    def match(self, prompt: Prompt) -> PrefixMatch | None:
        """Return the longest usable match.

        The last prompt position is never part of it: its hidden state is row 0 of the latent.
        """
        best: PrefixMatch | None = None
        for prefix_id, prefix in self._prefixes.items():
            shared = min(prompt.num_shared(prefix), len(prompt) - 1)
            if shared >= MIN_PREFIX_TOKENS and (best is None or shared >= best.num_tokens):
                best = PrefixMatch(prefix_id, shared)
        if best is not None:
            self._prefixes.move_to_end(best.prefix_id)
        return best

    def observe(self, prompt: Prompt) -> PrefixChange | None:
        """Learn from a prompt just computed; return the prefix of it to keep, if any."""
        shared = min(prompt.num_shared(self._last_prompt), self._max_tokens)
        self._last_prompt = prompt
        known = self.match(prompt)
        if shared < MIN_PREFIX_TOKENS or (known is not None and known.num_tokens >= shared - 1):
            return None
        evicted_ids = []
        while self._prefixes and not self._has_room(shared):
            evicted_ids.append(self._prefixes.popitem(last=False)[0])
        prefix_id = self._next_id
        self._next_id += 1
        self._prefixes[prefix_id] = prompt.slice(0, shared)
        return PrefixChange(prefix_id, shared, evicted_ids)

    def _has_room(self, num_tokens: int) -> bool:
        num_kept = sum(map(len, self._prefixes.values()))
        return len(self._prefixes) < MAX_PREFIXES and num_kept + num_tokens <= self._max_tokens
