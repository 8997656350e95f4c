"""How likely the receiver finds a plan after its compressed latent, and after another task's."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire.tensors import encode_hidden_state
from latentwire_batch.evaluation.compression.codecs import Codec, CodecError, Payload
from latentwire_batch.evaluation.messages import Frame
from latentwire_batch.evaluation.receiver import Messages, Receiver, RefusedError, Scored
from latentwire_batch.evaluation.samples import EvaluationSet, Rows
from latentwire_batch.evaluation.session import TaskResult, scored_together

TEXT, NONE = "text", "none"
MATCHED, OTHER = "matched", "other"
# A latent is its own task's and the one before's other: it is compressed once for both.
_KEPT_LATENTS = 4


def score_name(kind: str, label: str) -> str:
    """Return the key of a score in a `TaskResult`.

    Args:
        kind: `MATCHED` or `OTHER`.
        label: of the codec.
    """
    return f"{kind} {label}"


@dataclass(frozen=True)
class Channel:
    """How a codec's rows reach the receiver.

    Attributes:
        codec: of the latents.
        bridge: name of the bridge that reads its rows.
        declaration: of the rows, as a request declares them.
    """

    codec: Codec
    bridge: str
    declaration: Mapping[str, Any]

    def part(self, payload: Payload) -> dict[str, Any]:
        """Return a latent part.

        Raises:
            CodecError: the compressor cannot be undone, and the receiver needs the estimate.
        """
        rows = self.codec.message(payload)
        return {
            "type": "latent",
            "hidden_state": encode_hidden_state(rows).model_dump(mode="json"),
            "latent": dict(self.declaration),
            "bridge": self.bridge,
        }


@dataclass(frozen=True, eq=False)
class CompressedPair:
    """A task, its latent and another task's latent, compressed by all codecs.

    Attributes:
        index: position among the evaluated tasks.
        task_id: of the task.
        plan: its plan.
        payloads: of its latent, in the order of the codecs; or the reason why there are none.
        other_payloads: the same of the other task's latent.
    """

    index: int
    task_id: str
    plan: str
    payloads: Sequence[Payload] | CodecError
    other_payloads: Sequence[Payload] | CodecError


def compressed_pairs(tasks: EvaluationSet, codecs: Sequence[Codec]) -> Iterator[CompressedPair]:
    """Yield the tasks with their latents compressed.

    Raises:
        InputError: the dataset cannot be read.
    """
    # The latent stays next to its payloads, so that no other one gets its id.
    kept: OrderedDict[int, tuple[Rows, Sequence[Payload] | CodecError]] = OrderedDict()

    def compressed(rows: Rows) -> Sequence[Payload] | CodecError:
        if id(rows) not in kept:
            kept[id(rows)] = (rows, _encode_all(codecs, rows))
            if len(kept) > _KEPT_LATENTS:
                kept.popitem(last=False)
        return kept[id(rows)][1]

    for pair in tasks.pairs():
        sample = pair.sample
        yield CompressedPair(
            pair.index,
            sample.task_id,
            sample.plan,
            compressed(sample.rows),
            compressed(pair.other_rows),
        )


def _encode_all(codecs: Sequence[Codec], rows: Rows) -> Sequence[Payload] | CodecError:
    try:
        return [codec.encode(rows) for codec in codecs]
    except CodecError as error:
        return error


@dataclass(frozen=True)
class CompressionScorer:
    """Scores tasks.

    Attributes:
        channels: one per codec.
        frame: the texts around a message.
        receiver: reads the messages.
        slots: bound the messages that are made and not yet answered; as many as the receiver takes.
    """

    channels: Sequence[Channel]
    frame: Frame
    receiver: Receiver
    slots: asyncio.Semaphore

    @classmethod
    def of(cls, channels: Sequence[Channel], frame: Frame, receiver: Receiver) -> CompressionScorer:
        """Make a scorer that keeps the receiver's slots full."""
        return cls(channels, frame, receiver, asyncio.Semaphore(receiver.concurrency))

    async def score(self, pair: CompressedPair) -> TaskResult:
        """Score a task's plan after every message; text and nothing are scored once.

        Raises:
            RefusedError: a codec or the service refuses a message.
            BatchError: the service does not answer.
        """
        makers = dict(self._latents(pair))

        async def score(name: str) -> Scored:
            async with self.slots:
                messages = await asyncio.to_thread(self._messages, name, makers, pair.plan)
                return await self.receiver.score(messages, pair.plan)

        scores = await scored_together(score, [TEXT, NONE, *makers])
        return TaskResult(pair.index, pair.task_id, scores)

    def _latents(self, pair: CompressedPair) -> Iterator[tuple[str, tuple[Channel, Payload]]]:
        for kind, payloads in ((MATCHED, pair.payloads), (OTHER, pair.other_payloads)):
            if isinstance(payloads, CodecError):
                raise RefusedError(str(payloads)) from payloads
            for channel, payload in zip(self.channels, payloads, strict=True):
                yield score_name(kind, channel.codec.label), (channel, payload)

    def _messages(
        self, name: str, makers: Mapping[str, tuple[Channel, Payload]], plan: str
    ) -> Messages:
        if name in (TEXT, NONE):
            return self.frame.around(plan if name == TEXT else "")
        channel, payload = makers[name]
        try:
            return self.frame.around(channel.part(payload))
        except CodecError as error:
            raise RefusedError(str(error)) from error
