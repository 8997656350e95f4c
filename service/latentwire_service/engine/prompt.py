"""The prompt of a request: a value that the engine measures, slices and compares.

Scheduler and prefix cache use its length, its slices and what it shares with another prompt. They
never look inside, so that a prompt can hold more than token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


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


def encode_prompt(tokenizer: Any, text: str, chat_template: str) -> Prompt:
    """Tokenize a prompt.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the filled template.
        chat_template: `auto` (the tokenizer's own template if it has one, else the bare text),
            `none`, or `qwen` (ChatML: one user turn, an opened assistant turn).
    """
    if chat_template == "auto" and tokenizer.chat_template:
        messages = [{"role": "user", "content": text}]
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # The template writes its own special tokens; adding them again would double the first.
        return Prompt(tuple(tokenizer.encode(chat, add_special_tokens=False)))
    if chat_template == "qwen":
        text = _CHATML.replace("{prompt}", text)
    return Prompt(tuple(tokenizer.encode(text)))
