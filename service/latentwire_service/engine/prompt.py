"""The prompt of a request: a value that the engine measures, slices and compares.

Scheduler and prefix cache use its length, its slices and what it shares with another prompt. They
never look inside, so that a prompt can hold more than token ids.
"""

from __future__ import annotations

from dataclasses import dataclass

CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads before it generates, one position per token.

    Attributes:
        token_ids: one per position.
    """

    token_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.token_ids)

    def slice(self, start: int, end: int) -> Prompt:
        """Return positions ``start..end-1``."""
        return Prompt(self.token_ids[start:end])

    def num_shared(self, other: Prompt) -> int:
        """Return the number of leading positions that are the same in both prompts."""
        for index, (own, theirs) in enumerate(zip(self.token_ids, other.token_ids, strict=False)):
            if own != theirs:
                return index
        return min(len(self), len(other))


def fill_template(template: str, task: str) -> str:
    """Replace each ``{task}`` literally.

    Not `str.format`: the template comes from a stranger, and attribute access would leak.
    """
    return template.replace("{task}", task)
