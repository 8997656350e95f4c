"""The token ids that a model can read and choose, compared with those of its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latentwire_service.engine.errors import (
    DamagedModelError,
    InvalidParamsError,
    UnsupportedModelError,
)
from latentwire_service.engine.prompt import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The token ids `0..size-1`, which both the embedding and the LM head have."""

    size: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Vocabulary:
        """Compare the sizes of model and tokenizer, and log a warning when ids are missing.

        Raises:
            UnsupportedModelError: the model can choose a token that it cannot read.
        """
        num_rows = _num_rows(model.get_input_embeddings())
        num_logits = _num_rows(model.get_output_embeddings())
        configured = model.config.get_text_config().vocab_size
        num_rows = configured if num_rows is None else num_rows
        num_logits = num_rows if num_logits is None else num_logits
        if num_logits > num_rows:
            raise UnsupportedModelError(
                f"{model.config.model_type} has {num_logits} logits, but its embedding has "
                f"{num_rows} rows: it can choose tokens that it cannot read"
            )
        vocabulary = cls(min(num_rows, num_logits))
        largest = _largest_id(tokenizer)
        if largest is not None and largest >= vocabulary.size:
            logger.warning(
                "the tokenizer has token ids up to %d, but the model's embedding has %d rows; "
                "prompts that need a larger id are refused",
                largest,
                vocabulary.size,
            )
        return vocabulary

    def warn_about_ends(self, eos_token_ids: Iterable[int]) -> None:
        """Log a warning when the model cannot choose a token that ends generation."""
        beyond = sorted(each for each in eos_token_ids if not 0 <= each < self.size)
        if beyond:
            logger.warning(
                "eos_token_id names %s, which is not one of the model's %d token ids: plans do not "
                "end there",
                ", ".join(map(str, beyond)),
                self.size,
            )

    def check(self, prompt: Prompt) -> Prompt:
        """Return a prompt that the model can read.

        Raises:
            InvalidParamsError: an id is not one of the embedding's.
        """
        for token_id in prompt.token_ids:
            # A tokenizer without an unknown token may give None for a character.
            if not isinstance(token_id, int):
                raise InvalidParamsError("task", "the tokenizer has no token for part of the text")
            if not 0 <= token_id < self.size:
                raise InvalidParamsError(
                    "task",
                    f"the tokenizer gives token id {token_id}, but the model's embedding has "
                    f"{self.size} rows",
                )
        return prompt


def checked_eos_token_ids(value: object) -> frozenset[int]:
    """Return the token ids of an `eos_token_id`: a number, several, or None.

    Raises:
        DamagedModelError: it is something else.
    """
    token_ids = value if isinstance(value, list | tuple) else () if value is None else (value,)
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in token_ids):
        raise DamagedModelError(f"eos_token_id {value!r} is neither a token id nor a list of them")
    return frozenset(token_ids)


def _num_rows(layer: Any) -> int | None:
    """Return the number of rows of an embedding or LM head; None when there is no weight."""
    weight = getattr(layer, "weight", None)
    return None if weight is None else int(weight.shape[0])


def _largest_id(tokenizer: Any) -> int | None:
    try:
        return max(tokenizer.get_vocab().values(), default=None)
    except Exception:
        # Some tokenizers of remote code do not list their tokens. Each prompt is checked anyway.
        logger.debug("the tokenizer does not list its tokens", exc_info=True)
        return None
