"""Task to prompt to token ids."""

from __future__ import annotations

from typing import Any

_CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def fill_template(template: str, task: str) -> str:
    """Replace each ``{task}`` literally.

    Not `str.format`: a template comes from a stranger, and attribute access would leak.
    """
    return template.replace("{task}", task)


def encode_prompt(tokenizer: Any, prompt: str, chat_template: str) -> list[int]:
    """Return the prompt's token ids.

    Args:
        tokenizer: Hugging Face tokenizer.
        prompt: the filled template.
        chat_template: `auto` (the tokenizer's own if it has one, else the bare prompt), `none`, or
            `qwen` (ChatML: one user turn, an opened assistant turn).
    """
    if chat_template == "auto" and tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # The template writes its own special tokens; adding them again would double the first.
        return list(tokenizer.encode(text, add_special_tokens=False))
    text = _CHATML.replace("{prompt}", prompt) if chat_template == "qwen" else prompt
    return list(tokenizer.encode(text))
