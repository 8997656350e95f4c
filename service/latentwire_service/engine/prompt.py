"""The prompt of a request: a value that the engine measures, slices and compares.

Scheduler and prefix cache use its length, its slices and what it shares with another prompt. They
never look inside, so that a prompt can hold more than token ids: at some positions, the model gets
a row of numbers instead of the embedding of a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np
import numpy.typing as npt

ASSISTANT = "assistant"

# `[n, width]` float32 input embeddings that a latent became.
Embeddings = npt.NDArray[np.float32]

# The token id of a position that holds a given embedding. Every vocabulary has it; nobody reads it.
PLACEHOLDER_ID = 0


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingSpan:
    """Rows that the model gets instead of token embeddings, at consecutive positions.

    Two spans are equal when their positions and values are.

    Attributes:
        start: position of the first row.
        rows: `[n, embedding_size]` float32, at least one, read-only: what one would pass to the
            model as `inputs_embeds`.
    """

    start: int
    rows: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check the shape, and keep a view that cannot be written to.

        Raises:
            ValueError: the rows are not a float32 matrix with at least one row.
        """
        if self.rows.ndim != 2 or not len(self.rows) or self.rows.dtype != np.float32:
            raise ValueError(f"not a float32 matrix: {self.rows.dtype} {self.rows.shape}")
        view = self.rows.view()
        view.flags.writeable = False
        object.__setattr__(self, "rows", view)

    @property
    def end(self) -> int:
        """Position after the last row."""
        return self.start + len(self.rows)

    def __eq__(self, other: object) -> bool:
        """Compare positions and values."""
        if not isinstance(other, EmbeddingSpan):
            return NotImplemented
        return self.start == other.start and np.array_equal(self.rows, other.rows)

    def __hash__(self) -> int:
        """Hash the positions: spans with equal values have them in common."""
        return hash((self.start, self.rows.shape))

    def part(self, start: int, end: int) -> EmbeddingSpan | None:
        """Return what lies in positions ``start..end-1``, counted from `start`; None: nothing."""
        first, last = max(self.start, start), min(self.end, end)
        if first >= last:
            return None
        return EmbeddingSpan(first - start, self.rows[first - self.start : last - self.start])


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads before it generates.

    Attributes:
        token_ids: one per position; `PLACEHOLDER_ID` where the position holds an embedding.
        embeddings: given embeddings, in the order of their positions.
        day: the date that the chat template wrote into the prompt; None when it wrote none.

    Raises:
        ValueError: spans overlap, are not in order, exceed the prompt, or differ in width.
    """

    token_ids: tuple[int, ...]
    embeddings: tuple[EmbeddingSpan, ...] = ()
    day: date | None = None

    def __post_init__(self) -> None:
        """Check the spans."""
        end = 0
        for span in self.embeddings:
            if span.start < end or span.end > len(self.token_ids):
                raise ValueError(f"positions {span.start} to {span.end - 1} cannot hold embeddings")
            end = span.end
        if len({span.rows.shape[1] for span in self.embeddings}) > 1:
            raise ValueError("the embeddings of a prompt differ in width")

    @classmethod
    def joined(cls, pieces: Iterable[Sequence[int] | npt.NDArray[np.float32]]) -> Prompt:
        """Put a prompt together.

        Args:
            pieces: in order: token ids, or embeddings as a `[n, embedding_size]` float32 matrix.
        """
        token_ids: list[int] = []
        spans = []
        for piece in pieces:
            if isinstance(piece, np.ndarray):
                if len(piece):
                    spans.append(EmbeddingSpan(len(token_ids), piece))
                token_ids += [PLACEHOLDER_ID] * len(piece)
            else:
                token_ids += piece
        return cls(tuple(token_ids), tuple(spans))

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.token_ids)

    @property
    def embedding_size(self) -> int | None:
        """Width of the embeddings; None without any."""
        return self.embeddings[0].rows.shape[1] if self.embeddings else None

    def slice(self, start: int, end: int) -> Prompt:
        """Return positions ``start..end-1``; the embeddings are views."""
        parts = [span.part(start, end) for span in self.embeddings]
        return Prompt(self.token_ids[start:end], tuple(part for part in parts if part is not None))

    def followed_by(self, token_ids: tuple[int, ...]) -> Prompt:
        """Return the prompt with more tokens at its end."""
        return Prompt(self.token_ids + token_ids, self.embeddings)

    def followed_by_rows(self, rows: Embeddings) -> Prompt:
        """Return the prompt with more embeddings, `[n, embedding_size]` float32, at its end."""
        longer = Prompt.joined([self.token_ids, rows])
        return replace(longer, embeddings=self.embeddings + longer.embeddings, day=self.day)

    def text_only(self) -> Prompt:
        """Return the prompt without the positions that hold embeddings."""
        if not self.embeddings:
            return self
        token_ids: list[int] = []
        end = 0
        for span in self.embeddings:
            token_ids += self.token_ids[end : span.start]
            end = span.end
        return Prompt((*token_ids, *self.token_ids[end:]))

    def num_shared(self, other: Prompt) -> int:
        """Return the number of leading positions that are the same token in both prompts.

        They end before the first embedding of either prompt.
        """
        limit = min(self._num_leading_tokens(), other._num_leading_tokens())
        pairs = zip(self.token_ids[:limit], other.token_ids[:limit], strict=True)
        for index, (own, theirs) in enumerate(pairs):
            if own != theirs:
                return index
        return limit

    def _num_leading_tokens(self) -> int:
        return self.embeddings[0].start if self.embeddings else len(self)


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One message: its role, and its texts and latents in order."""

    role: str
    content: Sequence[str | Embeddings]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a prompt is made of, before template and tokenizer.

    Attributes:
        turns: at least one. A last one of the assistant is continued.
        chat_template: `auto` (the model's own template if it has one, else the bare text), `none`
            or `qwen` (ChatML), as in a request.
        template_kwargs: more variables for the model's own template.
        day: the date that the model's own template writes; None: today, in UTC.
        field: the field of the request that holds the text, for messages of errors.
    """

    turns: Sequence[Turn]
    chat_template: str = "auto"
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    day: date | None = None
    field: str = "task"

    @classmethod
    def of_text(cls, text: str, chat_template: str = "auto") -> Conversation:
        """Return one message of the user."""
        return cls((Turn("user", (text,)),), chat_template)

    @property
    def is_continued(self) -> bool:
        """Whether the model continues the last turn instead of beginning one."""
        return self.turns[-1].role == ASSISTANT


def fill_template(template: str, task: str) -> str:
    """Replace each ``{task}`` literally.

    Not `str.format`: the template comes from a stranger, and attribute access would leak.
    """
    return template.replace("{task}", task)
