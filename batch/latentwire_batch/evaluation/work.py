"""The work of an evaluation: what is checked before the first request, and the run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from latentwire.bridge_info import BridgeInfo, BridgeSource
from latentwire.bridge_manifest import Source
from latentwire.version import VERSION
from latentwire_batch.console import Console
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.evaluation.answers import read_answers
from latentwire_batch.evaluation.bridge_files import ChosenBridge, choose_bridge
from latentwire_batch.evaluation.messages import Frame, MessageMaker
from latentwire_batch.evaluation.receiver import Receiver, find_bridge, opened_receiver
from latentwire_batch.evaluation.samples import EvaluationSet, HeldOutSplit
from latentwire_batch.evaluation.session import AnswerPlan, EvaluationPlan, Results, evaluate
from latentwire_batch.evaluation.settings import EvaluateSettings

# The prompt of bridges that state none: the default of fit-bridge.
_DEFAULT_FRAME = Frame("Repeat the message: ", "")
_STATED_SETTINGS = {"seed", "limit", "answers", "answer_before", "answer_after", "max_new_tokens"}


class Work:
    """Everything that is checked before the first request, and the run.

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
        self.facts: dict[str, Any] = {}
        # The name alone: readers must not learn the path.
        self._dataset_name = settings.dataset.resolve().name
        self._settings = settings
        self._console = console
        self._bridge = bridge
        self._width = width
        self._answers = answers

    @classmethod
    def of(cls, settings: EvaluateSettings, console: Console) -> Work:
        """Check the bridge and the dataset.

        Raises:
            UsageError: one of them cannot be used, or they do not fit each other.
        """
        bridge = choose_bridge(settings.bridge)
        split = _split(settings, bridge, console)
        try:
            tasks = EvaluationSet.from_path(settings.dataset, split, settings.limit)
            width = tasks.width()
        except InputError as error:
            raise InputError(f"DATASET: {error}") from error
        if bridge.manifest is not None:
            _check_source(bridge.manifest.source, tasks, width)
        answers = None
        if settings.answers is not None:
            answers = read_answers(
                settings.answers, settings.answers_file, settings.id_field, tasks
            )
        return cls(settings, console, bridge, tasks, width, answers)

    async def run(self, results: Results) -> None:
        """Find the service, and evaluate all tasks; `results` are filled."""
        settings = self._settings
        async with opened_receiver(settings, self._bridge, self._console.say) as (receiver, guard):
            loaded = find_bridge(receiver.info, self._bridge)
            _check_source(loaded.source, self.tasks, self._width)
            frame = self._frame(loaded)
            declared = self._declaration(loaded)
            self.facts = self._all_facts(receiver, loaded, frame)
            plan = EvaluationPlan(
                self.tasks,
                MessageMaker(loaded.name, declared, settings.seed),
                frame,
                self._answer_plan(),
            )
            await evaluate(plan, receiver, guard, self._console, results)

    def _frame(self, loaded: BridgeInfo) -> Frame:
        prompt = loaded.prompt
        frame = _DEFAULT_FRAME if prompt is None else Frame(prompt.before, prompt.after)
        given = {"before": self._settings.before, "after": self._settings.after}
        return replace(frame, **{name: text for name, text in given.items() if text is not None})

    def _declaration(self, loaded: BridgeInfo) -> dict[str, Any]:
        """Return what a request says about the latents; the bridge's own word fills gaps."""
        names = ("model", "revision", "layer", "normed")
        found = {"model": "unknown"}
        for part in (loaded.source, self.tasks.declared):
            values = {name: getattr(part, name) for name in names}
            found |= {name: value for name, value in values.items() if value is not None}
        return found

    def _answer_plan(self) -> AnswerPlan | None:
        if self._answers is None:
            return None
        settings = self._settings
        return AnswerPlan(
            self._answers, settings.answer_before, settings.answer_after, settings.max_new_tokens
        )

    def _all_facts(self, receiver: Receiver, loaded: BridgeInfo, frame: Frame) -> dict[str, Any]:
        settings, tasks, info = self._settings, self.tasks, receiver.info
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
            "sender": {**asdict(tasks.declared), "hidden_size": self._width},
            "dataset": {"name": self._dataset_name, "num_rows": tasks.num_rows},
            "split": asdict(tasks.split),
            "prompt": asdict(frame),
            "settings": settings.model_dump(mode="json", include=_STATED_SETTINGS),
            "latentwire": VERSION,
        }


def _split(settings: EvaluateSettings, bridge: ChosenBridge, console: Console) -> HeldOutSplit:
    """Decide which tasks are scored: never those that the bridge was fitted to, if it says which.

    Raises:
        UsageError: `--held-out` takes in tasks that the bridge was fitted to.
    """
    fitted = None if bridge.manifest is None else bridge.manifest.held_out
    fraction = settings.held_out
    if fraction is not None and fraction >= 1:
        return HeldOutSplit(0, 1.0, "all of the dataset, as --held-out says")
    if fitted is not None:
        if fraction is not None and fraction > fitted.fraction:
            raise UsageError(
                f"--held-out: {fraction:g} takes in tasks that the bridge was fitted to, which "
                f"held out {fitted.fraction:g}; 1 scores all tasks of another dataset"
            )
        fraction = fitted.fraction if fraction is None else fraction
        meaning = f"held out when the bridge was fitted: fraction {fraction:g}, seed {fitted.seed}"
        return HeldOutSplit(fitted.seed, fraction, meaning)
    if fraction is not None:
        meaning = f"held out: fraction {fraction:g}, seed {settings.seed}"
        return HeldOutSplit(settings.seed, fraction, meaning)
    if bridge.directory is None:
        return HeldOutSplit(0, 1.0, "all of the dataset; the bridge was not fitted")
    console.say(
        "--bridge: does not say which tasks it was fitted to, so all tasks are scored; --held-out "
        "and --seed choose those that were held out"
    )
    return HeldOutSplit(0, 1.0, "all of the dataset; the bridge may have been fitted to some")


def _check_source(source: Source | BridgeSource, tasks: EvaluationSet, width: int) -> None:
    """Refuse a dataset that the bridge was not made for, with both values.

    Raises:
        InputError: its latents are others.
    """
    declared = {**asdict(tasks.declared), "hidden_size": width}
    for name, given in declared.items():
        wanted = getattr(source, name)
        if wanted is not None and given is not None and wanted != given:
            raise InputError(
                f"DATASET: {name} of its latents is {given}, and the bridge was made for {wanted}"
            )
