"""The work of an evaluation: what is checked before the first request, and the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from latentwire.bridge_info import BridgeInfo, BridgeSource
from latentwire.bridge_manifest import Source
from latentwire.version import VERSION
from latentwire_batch.console import Console
from latentwire_batch.errors import InputError
from latentwire_batch.evaluation.answers import read_answers
from latentwire_batch.evaluation.bridge_files import ChosenBridge, choose_bridge
from latentwire_batch.evaluation.html import build_page
from latentwire_batch.evaluation.messages import Frame, MessageMaker
from latentwire_batch.evaluation.outcome import Outcome, outcome_of
from latentwire_batch.evaluation.receiver import Receiver, find_bridge, opened_receiver
from latentwire_batch.evaluation.report import make_report
from latentwire_batch.evaluation.samples import Declared, EvaluationSet, HeldOutSplit
from latentwire_batch.evaluation.session import AnswerPlan, EvaluationPlan, Results, evaluate
from latentwire_batch.evaluation.settings import EvaluateSettings
from latentwire_batch.evaluation.split import Fitted, choose_split
from latentwire_batch.evaluation.terminal import show

# The prompt of bridges that state none: the default of fit-bridge.
_DEFAULT_FRAME = Frame("Repeat the message: ", "")
_STATED_SETTINGS = {"seed", "limit", "answers", "answer_before", "answer_after", "max_new_tokens"}


class BridgeEvaluation:
    """An `Evaluation` of one bridge: what is checked before the first request, and the run.

    Args:
        settings: of the command.
        console: for notices and progress.
        bridge: that `--bridge` names.
        tasks: to evaluate.
        width: of their latents.
        answers: expected answers by id of the task; None when tasks are not to be solved.

    Attributes:
        tasks: to evaluate.
        facts: for the report; complete once the service was found.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        console: Console,
        bridge: ChosenBridge,
        tasks: EvaluationSet,
        width: int,
        answers: dict[str, str] | None,
    ) -> None:
        self.tasks = tasks
        self._results = Results()
        # Also of a path, which is not resolved on the event loop.
        self.facts = dataset_facts(settings, tasks, width)
        self._settings = settings
        self._console = console
        self._bridge = bridge
        self._width = width
        self._answers = answers

    @classmethod
    def of(
        cls, settings: EvaluateSettings, given_bridge: str, console: Console
    ) -> BridgeEvaluation:
        """Check the bridge and the dataset.

        Raises:
            UsageError: one of them cannot be used, or they do not fit each other.
        """
        bridge = choose_bridge(given_bridge)
        split = choose_split(
            fitted_bridge(bridge),
            settings.held_out,
            settings.seed,
            console.say,
            "the bridge was",
        )
        tasks, width = open_set(settings, split)
        if bridge.manifest is not None:
            check_source(bridge.manifest.source, tasks, width)
        answers = None
        if settings.answers is not None:
            answers = read_answers(
                settings.answers, settings.answers_file, settings.id_field, tasks
            )
        return cls(settings, console, bridge, tasks, width, answers)

    @property
    def has_numbers(self) -> bool:
        """Whether a task was scored."""
        return bool(self._results.finished)

    @property
    def refused(self) -> Mapping[str, str]:
        """Reason by the id of a task that was set aside."""
        return self._results.refused

    def outcome(self, *, is_complete: bool) -> Outcome:
        """Summarize what was found: see `Evaluation`."""
        report = make_report(
            self._results,
            self.tasks.num_tasks,
            self._settings.seed,
            self.facts,
            is_complete=is_complete,
        )
        return outcome_of(report, show, build_page)

    async def run(self) -> None:
        """Find the service, and evaluate all tasks."""
        settings = self._settings
        async with opened_receiver(settings, self._bridge, self._console.say) as (receiver, guard):
            loaded = find_bridge(receiver.info, self._bridge)
            check_source(loaded.source, self.tasks, self._width)
            frame = frame_of(settings, loaded)
            declared = declaration_of(loaded.source, self.tasks.declared)
            stated = settings.model_dump(mode="json", include=_STATED_SETTINGS)
            self.facts |= {**receiver_facts(receiver, loaded, frame), "settings": stated}
            plan = EvaluationPlan(
                self.tasks,
                MessageMaker(loaded.name, declared, settings.seed),
                frame,
                self._answer_plan(),
            )
            await evaluate(plan, receiver, guard, self._console, self._results)

    def _answer_plan(self) -> AnswerPlan | None:
        if self._answers is None:
            return None
        settings = self._settings
        return AnswerPlan(
            self._answers, settings.answer_before, settings.answer_after, settings.max_new_tokens
        )


def open_set(settings: EvaluateSettings, split: HeldOutSplit) -> tuple[EvaluationSet, int]:
    """Return the tasks to evaluate, and the width of their latents.

    Args:
        settings: of the command.
        split: the tasks of the dataset that count.

    Raises:
        InputError: the dataset cannot be read, or holds no latent.
    """
    try:
        tasks = EvaluationSet.from_path(settings.dataset, split, settings.limit, settings.split)
        return tasks, tasks.width()
    except InputError as error:
        raise InputError(f"DATASET: {error}") from error


def fitted_bridge(bridge: ChosenBridge) -> list[Fitted]:
    """Return the bridge, unless it was not fitted to tasks."""
    if bridge.directory is None:
        return []
    held_out = None if bridge.manifest is None else bridge.manifest.held_out
    return [Fitted("--bridge", "the bridge", held_out)]


def frame_of(settings: EvaluateSettings, loaded: BridgeInfo) -> Frame:
    """Return the texts around a message: those of the flags, else those of the bridge."""
    prompt = loaded.prompt
    frame = _DEFAULT_FRAME if prompt is None else Frame(prompt.before, prompt.after)
    given = {"before": settings.before, "after": settings.after}
    return replace(frame, **{name: text for name, text in given.items() if text is not None})


def declaration_of(*parts: BridgeSource | Declared) -> dict[str, Any]:
    """Return what a request says about latents.

    Args:
        parts: that know something; a later one wins.
    """
    names = ("model", "revision", "layer", "normed")
    found = {"model": "unknown"}
    for part in parts:
        values = {name: getattr(part, name) for name in names}
        found |= {name: value for name, value in values.items() if value is not None}
    return found


def receiver_facts(receiver: Receiver, loaded: BridgeInfo, frame: Frame) -> dict[str, Any]:
    """Return the facts that the service knows: bridge, receiver and prompt."""
    info = receiver.info
    return {
        "bridge": loaded.model_dump(
            mode="json", include={"name", "kind", "content_hash", "source"}
        ),
        "receiver": {
            "model": info.model,
            "revision": info.revision,
            "hidden_size": info.hidden_size,
            "dtype": info.dtype,
            "device": info.device,
            "version": info.version,
        },
        "prompt": asdict(frame),
    }


def dataset_facts(settings: EvaluateSettings, tasks: EvaluationSet, width: int) -> dict[str, Any]:
    """Return the facts that the dataset and the command line hold."""
    return {
        "sender": {**asdict(tasks.declared), "hidden_size": width},
        # The name alone: readers must not learn the path.
        "dataset": {
            "name": settings.dataset.resolve().name,
            "num_rows": tasks.num_rows,
            **({} if settings.split is None else {"split": settings.split}),
        },
        "split": tasks.split.to_json(),
        "latentwire": VERSION,
    }


def check_source(
    source: Source | BridgeSource, tasks: EvaluationSet, width: int, reader: str = "the bridge"
) -> None:
    """Refuse a dataset that a bridge or a compressor was not made for, with both values.

    Args:
        source: latents that it was made for.
        tasks: of the dataset.
        width: of their latents.
        reader: the bridge or the compressor, in words.

    Raises:
        InputError: its latents are others.
    """
    declared = {**asdict(tasks.declared), "hidden_size": width}
    for name, given in declared.items():
        wanted = getattr(source, name)
        if wanted is not None and given is not None and wanted != given:
            raise InputError(
                f"DATASET: {name} of its latents is {given}, and {reader} was made for {wanted}"
            )
