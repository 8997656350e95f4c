"""Interlat's compressed generator: a student model that makes latents, with its own steps.

The served model is the student. Its weights come from the generator's files, together with the map
that feeds its latent steps and the learned vector that the first step starts from. The files also
hold the teacher, which is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentwire.bridge_manifest import content_hash
from latentwire_service.bridges.builtin import GENERATOR, Receiver
from latentwire_service.bridges.directory import naming
from latentwire_service.bridges.module_bridge import ModuleBridge, arrays
from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.bridges.weight_files import WeightFiles
from latentwire_service.engine.seams.bridge import BridgeError, BridgeSource

_STUDENTS = ("student_lm.", "student_model.")
_STARTS = ("lat_bos", "latent_bos")
_MAP = {"h2e.0.weight": "norm.weight", "h2e.0.bias": "norm.bias", "h2e.1.weight": "linear.weight"}
_WRAPPER = "module."
_TEACHER = "teacher."
_MAX_NAMED = 5


class GeneratorMap(BridgeModule):
    """LayerNorm and a linear map without bias, from the student's rows to its input embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, is_row_wise=True)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., width]`."""
        result: torch.Tensor = self.linear(self.norm(rows))
        return result


@dataclass(frozen=True, slots=True)
class _Stored:
    """Which stored tensor is which.

    Attributes:
        student: stored name by the model's own name.
        start: stored name of the start vector.
        map: stored name by the name in `GeneratorMap`.
    """

    student: dict[str, str]
    start: str
    map: dict[str, str]


def check_generator(directory: Path) -> None:
    """Check a directory without a model.

    Raises:
        BridgeError: it holds no generator.
    """
    with naming("generator", directory):
        _sorted_names(WeightFiles(directory))


def load_generator(directory: Path, receiver: Receiver) -> ModuleBridge:
    """Give the loaded model the student's weights, and return the bridge that feeds its steps.

    Every weight of the model must be in the files: a student that is loaded in part is untrained in
    part, and nothing else would show it.

    Args:
        directory: of the generator.
        receiver: the loaded model; changed in place.

    Raises:
        BridgeError: a tensor is missing, is unknown, has another shape, or is not finite.
    """
    with naming("generator", directory):
        files = WeightFiles(directory)
        stored = _sorted_names(files)
        _check_student(files, stored, receiver.model)
        module = _map(files, stored)
        start = files.get(stored.start).float()
        if start.shape != (module.width,):
            raise BridgeError(f"{stored.start} has shape {list(start.shape)}, not [{module.width}]")
        _fill_student(files, stored, receiver.model)
    if receiver.width != module.width:
        raise BridgeError(f"its steps are {module.width} wide, and the student {receiver.width}")
    module = module.to(receiver.device).eval().requires_grad_(False)
    tensors = {**module.state_dict(), "start": start}
    source = BridgeSource(
        receiver.model_id, receiver.revision, module.width, layer="last", normed=True
    )
    hashed = content_hash({"kind": GENERATOR}, arrays(tensors))
    return ModuleBridge(
        GENERATOR, GENERATOR, source, module, hashed, start=start.to(receiver.device)
    )


def _sorted_names(files: WeightFiles) -> _Stored:
    """Sort the stored names; the teacher's are left alone.

    Raises:
        BridgeError: something is missing, unknown or stored twice.
    """
    student: dict[str, str] = {}
    starts: list[str] = []
    found_map: dict[str, str] = {}
    unknown: list[str] = []
    for stored in files:
        name = stored
        while name.startswith(_WRAPPER):
            name = name.removeprefix(_WRAPPER)
        prefix = next((each for each in _STUDENTS if name.startswith(each)), None)
        if prefix is not None:
            student[name.removeprefix(prefix)] = stored
        elif name in _STARTS:
            starts.append(stored)
        elif name in _MAP:
            found_map[_MAP[name]] = stored
        elif not name.startswith(_TEACHER):
            unknown.append(stored)
    missing = [name for name, own in _MAP.items() if own not in found_map]
    missing += [] if starts else [" or ".join(_STARTS)]
    missing += [] if student else [" or ".join(f"{each}*" for each in _STUDENTS)]
    if missing:
        raise BridgeError(
            f"has no {', '.join(missing)}",
            "It must hold what Interlat's compression training saves.",
        )
    if unknown or len(starts) > 1:
        raise BridgeError(f"has tensors that are not known: {_listed(unknown or starts)}")
    return _Stored(student, starts[0], found_map)


def _check_student(files: WeightFiles, stored: _Stored, model: Any) -> None:
    """Check that the files hold every weight of the model, and no other.

    The embeddings may have more or fewer rows: training adds tokens. They are resized.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    missing = sorted(state.keys() - stored.student.keys())
    # Tied weights are stored once.
    given = {state[name].data_ptr() for name in state.keys() & stored.student.keys()}
    missing = [name for name in missing if state[name].data_ptr() not in given]
    if missing:
        raise BridgeError(f"the student has no {_listed(missing)}")
    unknown = sorted(stored.student.keys() - state.keys())
    if unknown:
        raise BridgeError(f"the student has weights that the model does not: {_listed(unknown)}")
    vocabulary = {
        module.weight.data_ptr()
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    for name, own in state.items():
        if name not in stored.student:
            continue
        shape, wanted = files.shape(stored.student[name]), tuple(own.shape)
        is_resizable = own.data_ptr() in vocabulary and shape[1:] == wanted[1:]
        if shape != wanted and not is_resizable:
            raise BridgeError(
                f"the student's {name} has shape {list(shape)}, the model's {list(wanted)}",
                "--model must name the model that the student was made from.",
            )


@torch.no_grad()
def _fill_student(files: WeightFiles, stored: _Stored, model: Any) -> None:
    embeddings = model.get_input_embeddings().weight
    own_name = next(name for name, own in model.named_parameters() if own is embeddings)
    num_tokens = files.shape(stored.student[own_name])[0]
    if num_tokens != len(embeddings):
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
        model.requires_grad_(False)
    for name, own in model.state_dict().items():
        if name in stored.student:
            own.copy_(files.get(stored.student[name]))


def _map(files: WeightFiles, stored: _Stored) -> GeneratorMap:
    shape = files.shape(stored.map["linear.weight"])
    if len(shape) != 2 or shape[0] != shape[1]:
        raise BridgeError(f"h2e.1.weight has shape {list(shape)}, which is not square")
    module = GeneratorMap(shape[0])
    for name, own in module.state_dict().items():
        if files.shape(stored.map[name]) != tuple(own.shape):
            raise BridgeError(
                f"{stored.map[name]} has shape {list(files.shape(stored.map[name]))}, not "
                f"{list(own.shape)}"
            )
        own.copy_(files.get(stored.map[name]))
    return module


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
