"""The work of an evaluation of compressors: what is checked first, and the run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentwire.bridge_info import BridgeInfo
from latentwire_batch.console import Console, Notify
from latentwire_batch.dispatch.watchdog import Guard, guarded
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.evaluation.bridge_files import ChosenBridge, choose_bridge
from latentwire_batch.evaluation.compression.choice import (
    Choice,
    choose_codecs,
    fitted_compressors,
)
from latentwire_batch.evaluation.compression.html import build_page
from latentwire_batch.evaluation.compression.measure import Measurements, measure, num_steps
from latentwire_batch.evaluation.compression.receive import (
    Channel,
    CompressionScorer,
    compressed_pairs,
)
from latentwire_batch.evaluation.compression.report import make_compression_report
from latentwire_batch.evaluation.compression.terminal import show
from latentwire_batch.evaluation.messages import Frame
from latentwire_batch.evaluation.outcome import Outcome, outcome_of
from latentwire_batch.evaluation.progress import EvaluationProgress
from latentwire_batch.evaluation.receiver import Receiver, find_bridge, opened_receiver
from latentwire_batch.evaluation.samples import EvaluationSet
from latentwire_batch.evaluation.session import (
    Results,
    cancel_on_sigterm,
    run_tasks,
    workers_for,
)
from latentwire_batch.evaluation.settings import EvaluateSettings
from latentwire_batch.evaluation.split import choose_split
from latentwire_batch.evaluation.work import (
    check_source,
    dataset_facts,
    declaration_of,
    fitted_bridge,
    frame_of,
    open_set,
    receiver_facts,
)

_STATED_SETTINGS = {"seed", "limit", "k"}
_EMBEDDINGS = "embeddings"
# Messages that are no latent: the plan as text, and nothing.
_NUM_TEXTS = 2


@dataclass(frozen=True)
class CompressionEvaluation:
    """An `Evaluation` of compressors: what is checked first, and the run.

    Attributes:
        settings: of the command.
        console: for notices and progress.
        choices: what `--compressor` names; the full latent is the first.
        bridge: that `--bridge` names; None: no receiver reads the latents.
        tasks: to evaluate.
        width: of their latents.
        measured: what was found without the receiver.
        received: likelihoods; empty without a bridge.
        facts: for the report; those of the service are added once it was found.
    """

    settings: EvaluateSettings
    console: Console
    choices: Sequence[Choice]
    bridge: ChosenBridge | None
    tasks: EvaluationSet
    width: int
    measured: Measurements
    received: Results = field(default_factory=Results)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: EvaluateSettings, console: Console) -> CompressionEvaluation:
        """Check compressors, bridge and dataset.

        Raises:
            UsageError: one of them cannot be used, or they do not fit each other.
        """
        choices = choose_codecs(settings.compressor, settings.k)
        bridge = None if settings.bridge is None else choose_bridge(settings.bridge)
        fitted = fitted_compressors(choices)
        if bridge is not None:
            fitted = [*fitted_bridge(bridge), *fitted]
        split = choose_split(
            fitted, settings.held_out, settings.seed, console.say, "these compressors were"
        )
        tasks, width = open_set(settings, split)
        if bridge is not None and bridge.manifest is not None:
            check_source(bridge.manifest.source, tasks, width)
        for choice in choices:
            _check_width(choice, width)
            if choice.manifest is not None:
                check_source(choice.manifest.source, tasks, width, choice.name)
        facts = dataset_facts(settings, tasks, width)
        facts["settings"] = settings.model_dump(mode="json", include=_STATED_SETTINGS)
        measured = Measurements([choice.codec for choice in choices])
        return cls(settings, console, choices, bridge, tasks, width, measured, facts=facts)

    @property
    def has_numbers(self) -> bool:
        """Whether a task was measured."""
        return bool(self.measured.numbers)

    @property
    def refused(self) -> Mapping[str, str]:
        """Reason by the id of a task that was set aside."""
        return self.measured.refused | self.received.refused

    def outcome(self, *, is_complete: bool) -> Outcome:
        """Summarize what was found: see `Evaluation`."""
        report = make_compression_report(
            self.measured,
            self.received if self.received.finished else None,
            self.tasks.num_tasks,
            self.settings.seed,
            self.facts,
            is_complete=is_complete,
        )
        return outcome_of(report, show, build_page)

    async def run(self) -> None:
        """Evaluate all tasks.

        Raises:
            BatchError: the dataset cannot be read, or the service not be used.
        """
        cancel_on_sigterm()
        if self.bridge is None:
            await self._measure()
            return
        opened = opened_receiver(self.settings, self.bridge, self.console.say)
        async with opened as (receiver, guard):
            loaded = find_bridge(receiver.info, self.bridge)
            check_source(loaded.source, self.tasks, self.width)
            frame = frame_of(self.settings, loaded)
            self.facts.update(receiver_facts(receiver, loaded, frame))
            channels = [self._channel(choice, receiver, loaded) for choice in self.choices]
            self._name_other_prompts(frame)
            # The service is idle meanwhile, so that it does not slow the compressors down.
            await guarded(self._measure(), guard)
            await self._receive(CompressionScorer.of(channels, frame, receiver), guard)

    async def _measure(self) -> None:
        steps = measure(self.tasks, self.measured)
        with EvaluationProgress(self.console, num_steps(self.tasks), "measurements") as progress:
            while await asyncio.to_thread(_advances, steps):
                progress.advance()

    async def _receive(self, scorer: CompressionScorer, guard: Guard) -> None:
        num_messages = _NUM_TEXTS + 2 * len(self.choices)
        num_workers = workers_for(scorer.receiver.concurrency, num_messages)
        pairs = compressed_pairs(self.tasks, self.measured.codecs)
        with EvaluationProgress(self.console, self.tasks.num_tasks) as progress:
            work = run_tasks(pairs, scorer.score, self.received, progress, num_workers)
            await guarded(work, guard)
        if not self.received.finished:
            reasons = self.received.refused.values()
            raise UsageError(f"no task could be scored: {next(iter(reasons), 'none is usable')}")

    def _channel(self, choice: Choice, receiver: Receiver, loaded: BridgeInfo) -> Channel:
        """Choose the bridge that reads the rows of a codec.

        Raises:
            UsageError: the compressor was made for another receiver.
        """
        if choice.codec.output != "embeddings":
            return Channel(
                choice.codec, loaded.name, declaration_of(loaded.source, self.tasks.declared)
            )
        _check_receiver(choice, receiver, self.console.say)
        named = next((each for each in receiver.info.bridges if each.name == _EMBEDDINGS), None)
        if named is None:
            raise UsageError(f"the service has no bridge {_EMBEDDINGS}, which {choice.name} needs")
        return Channel(choice.codec, named.name, declaration_of(named.source))

    def _name_other_prompts(self, frame: Frame) -> None:
        for choice in self.choices:
            prompt = None if choice.manifest is None else choice.manifest.prompt
            if prompt is not None and Frame(prompt.before, prompt.after) != frame:
                self.console.say(
                    f"--compressor: {choice.name} was fitted with another text around the message; "
                    "--before and --after choose it"
                )


def _advances(steps: Any) -> bool:
    return next(steps, steps) is not steps


def _check_width(choice: Choice, width: int) -> None:
    compressor = choice.codec.compressor
    wanted = None if compressor is None else compressor.source_width
    if wanted is not None and wanted != width:
        raise InputError(
            f"DATASET: hidden_size of its latents is {width}, and {choice.name} was made for "
            f"{wanted}"
        )


def _check_receiver(choice: Choice, receiver: Receiver, say: Notify) -> None:
    """Refuse a compressor whose input embeddings have another width than the receiver's.

    Args:
        choice: the compressor.
        receiver: the service.
        say: receives a notice if it was made for a model of another name, as a service logs it of
            a bridge: one model may have several names.

    Raises:
        UsageError: with both values.
    """
    target = None if choice.manifest is None else choice.manifest.receiver
    if target is None:
        return
    info = receiver.info
    if target.hidden_size != info.hidden_size:
        raise UsageError(
            f"--compressor: {choice.name} makes input embeddings of width {target.hidden_size}, "
            f"and {info.model} reads width {info.hidden_size}"
        )
    if target.model is not None and target.model != info.model:
        say(
            f"--compressor: {choice.name} was made for the model {target.model}, and {info.model} "
            "is served"
        )
