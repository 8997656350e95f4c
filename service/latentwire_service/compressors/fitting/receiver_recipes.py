"""Kinds that are fitted through a frozen receiver: selector and resampler, both with a bridge."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latentwire.bridge_manifest import HeldOut, Prompt, Target
from latentwire.compressors.learned_config import BridgeConfig, MixerConfig, SelectorConfig
from latentwire.compressors.manifest import UsedBridge
from latentwire.compressors.message_map import MessageMap, RowChoice
from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.directory import load_bridge
from latentwire_service.bridges.manifest import read_manifest
from latentwire_service.bridges.module_bridge import ModuleBridge
from latentwire_service.bridges.modules import BridgeModule, Mlp, Ridge
from latentwire_service.compressors.fitting.back import fit_back
from latentwire_service.compressors.fitting.gains import (
    GAINS,
    SCORER_SIZE,
    fit_scorer,
    measured_gains,
    training_gains,
)
from latentwire_service.compressors.fitting.messages import (
    MessageObjective,
    message_scores,
    scorer_arrays,
    served_ks,
    tuned_windows,
)
from latentwire_service.compressors.fitting.recipe import Facts, Fitted, Make, Scores, Work
from latentwire_service.compressors.fitting.settings import CompressorSettings
from latentwire_service.compressors.modules import MessageMixer
from latentwire_service.engine.hf.loader import LoadedModel
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.command import Say
from latentwire_service.fitting.preparation import load_receiver
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.receiver import FrozenReceiver
from latentwire_service.fitting.samples import Sample
from latentwire_service.fitting.training import Tensors, Trainer, TrainingOptions

_SELECTED = "selected"
_TRAINING = "training"
# Held-out samples that choose the windows and check the training.
_NUM_TUNED, _NUM_CHECKED = 32, 24
_MAX_HEADS = 8
_WARM_UP, _LAST_FACTOR, _MAX_NORM = 10, 0.1, 5.0
_LEARNING_RATE = 1e-4
# Of bridges that state none: the default of fit-bridge.
_PROMPT = ("Repeat the message: ", "")
# The bridge is trained already.
_SLOWER = {"bridge.": 0.5}


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """Which rows a message holds.

    Attributes:
        scorer: tensors, each with `scorer.` before its name.
        windows: see `RowChoice`.
    """

    scorer: Tensors
    windows: dict[str, float]

    @property
    def choice(self) -> RowChoice:
        """The choice in numpy, as users apply it."""
        return RowChoice(scorer_arrays(self.scorer), self.windows)


@dataclass(frozen=True, eq=False)
class MessageRecipe:
    """Chooses rows; a resampler then trains what is added to them.

    Attributes:
        settings: of the command.
        bridge: its map is copied into the compressor.
        loaded: the receiver's model.
        receiver: reads the messages.
    """

    settings: CompressorSettings
    bridge: ModuleBridge
    loaded: LoadedModel
    receiver: FrozenReceiver

    @property
    def facts(self) -> Facts:
        """As `Recipe.facts`."""
        prompt = self.bridge.prompt
        return Facts(
            dim=self.receiver.width,
            output="embeddings",
            receiver=Target(
                model=self.loaded.model_id,
                revision=self.loaded.revision,
                hidden_size=self.receiver.width,
            ),
            bridge=UsedBridge(name=self.bridge.name, content_hash=self.bridge.content_hash),
            prompt=None if prompt is None else Prompt(before=prompt.before, after=prompt.after),
        )

    @property
    def ks(self) -> list[int]:
        """Numbers of rows that are chosen for and trained."""
        assert self.settings.k is not None, "checked with the settings"
        return served_ks(self.settings.k)

    def fit(self, work: Work) -> Fitted:
        """As `Recipe.fit`."""
        saved = work.checkpoint.load(self.receiver.device)
        if saved is None or saved.phase == GAINS:
            selected = self._selected(work)
            work.checkpoint.save(selected.scorer, [selected.windows], _SELECTED)
        else:
            selected = Selected(_under("scorer.", saved.tensors), saved.numbers[-1])
        config: dict[str, Any] = {
            "bridge": bridge_config(self.bridge.module).model_dump(),
            "windows": selected.windows,
            "scorer_size": SCORER_SIZE,
        }
        if self.settings.kind == "selector":
            tensors = {f"bridge.{name}": each for name, each in self._bridge_state().items()}
        else:
            config |= self._mixer_config
            tensors = self._trained(work, selected, config)
        tensors = {**tensors, **selected.scorer}
        return Fitted({**tensors, **self._back(work, tensors, config)}, config)

    def scores(
        self, make: Make, samples: Sequence[Sample], progress: FitProgress
    ) -> dict[str, Scores]:
        """As `Recipe.scores`."""
        return message_scores(make, self.ks, self._full_message, self.receiver, samples, progress)

    def _full_message(self, sample: Sample) -> torch.Tensor:
        rows = torch.tensor(sample.rows, device=self.receiver.device)
        return self.bridge.apply_torch(rows)

    @property
    def _mixer_config(self) -> dict[str, Any]:
        width = self.receiver.width
        heads = max(each for each in range(1, _MAX_HEADS + 1) if width % each == 0)
        size = self.settings.intermediate_size or 2 * width
        return {"slots": self.settings.k, "num_heads": heads, "intermediate_size": size}

    def _selected(self, work: Work) -> Selected:
        module, size = self.bridge.module, self.settings.batch_size
        samples = work.checked[:_NUM_TUNED]
        training = training_gains(work, module, self.receiver, size)
        checked = [
            measured
            for start in range(0, len(samples), size)
            for measured in measured_gains(module, self.receiver, samples[start : start + size])
        ]
        scorer = fit_scorer(work, training, checked)
        choice = RowChoice(scorer_arrays(scorer), {})
        ks = sorted({4, *self.ks} if max(self.ks) > 4 else self.ks)
        windows = tuned_windows(choice, module, self.receiver, samples, ks, work.progress)
        return Selected(scorer, windows)

    def _trained(self, work: Work, selected: Selected, config: dict[str, Any]) -> Tensors:
        settings = self.settings
        torch.manual_seed(settings.seed)
        module = copy.deepcopy(self.bridge.module).requires_grad_(True)
        mixer = MessageMixer(
            module, config["slots"], config["num_heads"], config["intermediate_size"]
        ).to(self.receiver.device)
        steps = 160 if settings.steps is None else settings.steps
        options = TrainingOptions(
            steps=steps,
            learning_rate=settings.learning_rate or _LEARNING_RATE,
            check_every=settings.check_every,
            patience=settings.patience,
            batch_size=settings.batch_size,
            warm_up=_WARM_UP,
            last_factor=_LAST_FACTOR,
            max_norm=_MAX_NORM,
        )
        objective = MessageObjective(
            mixer,
            selected.choice,
            self.receiver,
            self.ks,
            settings.margin,
            self._full_message,
            settings.cosine,
        )
        trainer = Trainer(mixer, objective, options, work.checked[:_NUM_CHECKED], _SLOWER)
        saved = work.checkpoint.load(self.receiver.device)
        if saved is not None and saved.phase == _TRAINING:
            trainer.restore(saved.tensors, saved.numbers[:-1])

        def save() -> None:
            tensors = {**trainer.tensors(), **selected.scorer}
            work.checkpoint.save(tensors, [*trainer.state.numbers, selected.windows], _TRAINING)

        work.progress.begin("training", steps, trainer.state.step)
        trainer.run(
            work.split.batches(settings.batch_size),
            lambda loss: work.progress.advance(f"loss {loss:.2f}"),
            save,
        )
        return {name: value.detach() for name, value in mixer.state_dict().items()}

    def _bridge_state(self) -> Tensors:
        return dict(self.bridge.module.state_dict())

    def _back(self, work: Work, tensors: Tensors, config: dict[str, Any]) -> Tensors:
        arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        kind = SelectorConfig if self.settings.kind == "selector" else MixerConfig
        made = MessageMap(arrays, kind(**config), max(self.ks), self.receiver.width)
        return {
            name: torch.from_numpy(each)
            for name, each in fit_back(work, made, self.receiver.width).items()
        }


def message_recipe(settings: CompressorSettings, width: int, say: Say) -> MessageRecipe:
    """Load the receiver and the bridge.

    Args:
        settings: of the command, with a bridge.
        width: of the latents.
        say: writes a line for the user.

    Raises:
        BridgeError: the bridge cannot be used.
        ModelError: the receiver cannot be loaded.
    """
    assert settings.bridge is not None, "checked with the settings"
    loaded = load_receiver(settings)
    bridge = load_bridge(settings.bridge, Receiver(loaded.model, loaded.model_id))
    bridge_config(bridge.module)
    if bridge.module.source_width != width:
        raise BridgeError(
            f"--bridge: reads rows of width {bridge.module.source_width}, and the latents are "
            f"{width} wide"
        )
    _warn_of_other_tasks(settings, say)
    prompt = bridge.prompt
    before, after = _PROMPT if prompt is None else (prompt.before, prompt.after)
    receiver = FrozenReceiver(loaded, before, after, settings.max_rows)
    return MessageRecipe(settings, bridge, loaded, receiver)


def bridge_config(module: BridgeModule) -> BridgeConfig:
    """Return the sizes of a bridge that compressors can hold.

    Raises:
        BridgeError: it is of another kind.
    """
    if isinstance(module, Mlp):
        size = module.up.out_features
        return BridgeConfig(kind="mlp", window=module.window, intermediate_size=size)
    if isinstance(module, Ridge):
        return BridgeConfig(kind="ridge", window=module.window)
    raise BridgeError("--bridge: its kind must be ridge or mlp")


def _warn_of_other_tasks(settings: CompressorSettings, say: Say) -> None:
    assert settings.bridge is not None, "checked with the settings"
    held_out = read_manifest(settings.bridge).held_out
    if held_out != HeldOut(seed=settings.seed, fraction=settings.held_out):
        say(
            "the bridge's fit may have seen the held-out tasks: it does not state the same --seed "
            "and --held-out"
        )


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}
