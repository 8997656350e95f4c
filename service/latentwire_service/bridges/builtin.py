"""The bridges that need no fitting: made from the loaded model's own input and output embeddings.

The vocabulary is read in chunks, because its two matrices are among the largest of a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from latentwire.bridge_manifest import content_hash
from latentwire_service.bridges.module_bridge import ModuleBridge, arrays
from latentwire_service.bridges.modules import Alignment, BridgeModule, Identity, NormScaling
from latentwire_service.engine.seams.bridge import BridgeError, BridgeSource

logger = logging.getLogger(__name__)

EMBEDDINGS, NORM, WEIGHTS = "embeddings", "norm", "weights"
# The bridge of a latent generator, which is made at start as well.
GENERATOR = "generator"
BUILTIN_NAMES = (EMBEDDINGS, NORM, WEIGHTS)

_CHUNK_TOKENS = 8192
# As published with LatentMAS: it keeps the solution bounded where two directions are nearly the
# same.
_RIDGE = 1e-5


@dataclass(frozen=True, slots=True)
class Receiver:
    """The loaded model, as bridges see it.

    Attributes:
        model: a Hugging Face causal LM.
        model_id: of the model.
        revision: of a hub model.
    """

    model: Any
    model_id: str
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def width(self) -> int:
        """Width of the input embeddings.

        Raises:
            BridgeError: the model has no input embeddings of its own.
        """
        return next(_embedded(self.model)).shape[1]


def builtin_bridges(receiver: Receiver) -> tuple[list[ModuleBridge], dict[str, str]]:
    """Make the built-in bridges.

    Returns:
        The bridges, and for each that the model does not allow, the reason by its name.
    """
    makers: dict[str, Callable[[Receiver], ModuleBridge]] = {
        EMBEDDINGS: _embeddings,
        NORM: _norm,
        WEIGHTS: _weights,
    }
    bridges, refused = [], {}
    for name, make in makers.items():
        try:
            bridges.append(make(receiver))
        except BridgeError as error:
            logger.info("no bridge %s: %s", name, error)
            refused[name] = str(error)
    return bridges, refused


@torch.no_grad()
def alignment(model: Any) -> torch.Tensor:
    """Solve for the matrix that leads from hidden rows to input embeddings by the weights alone.

    Returns:
        `[H, H_in]` float32 on the model's device: solve(Wout' Wout + 1e-5 I, Wout' Win).

    Raises:
        BridgeError: the weights of the output embeddings cannot be read as numbers.
    """
    output = _output_weights(model)
    width = output.shape[1]
    gram = torch.zeros(width, width, device=output.device)
    cross: torch.Tensor | None = None
    start = 0
    for embedded in _embedded(model):
        rows = output[start : start + len(embedded)].float()
        # The vocabularies of input and output may be padded differently: the tail has no partner.
        embedded = embedded[: len(rows)].to(rows.device)
        gram += rows.T @ rows
        part = rows.T @ embedded
        cross = part if cross is None else cross + part
        start += len(rows)
    for begin in range(start, len(output), _CHUNK_TOKENS):
        rows = output[begin : begin + _CHUNK_TOKENS].float()
        gram += rows.T @ rows
    assert cross is not None, "an embedding has at least one row"
    gram.diagonal().add_(_RIDGE)
    try:
        solution: torch.Tensor = torch.linalg.solve(gram, cross)
    except RuntimeError as error:
        raise BridgeError("the output embeddings leave the alignment undetermined") from error
    return solution


@torch.no_grad()
def mean_norm(model: Any) -> float:
    """Return the mean norm of the model's input embeddings over its vocabulary."""
    total, count = 0.0, 0
    for embedded in _embedded(model):
        total += float(embedded.norm(dim=1).sum())
        count += len(embedded)
    return total / count


def _embeddings(receiver: Receiver) -> ModuleBridge:
    return _builtin(receiver, EMBEDDINGS, Identity(receiver.width))


def _norm(receiver: Receiver) -> ModuleBridge:
    return _builtin(receiver, NORM, NormScaling(receiver.width, mean_norm(receiver.model)))


def _weights(receiver: Receiver) -> ModuleBridge:
    matrix = alignment(receiver.model)
    if not torch.isfinite(matrix).all():
        raise BridgeError("the model's weights give an alignment that is not finite")
    return _builtin(receiver, WEIGHTS, Alignment(matrix, mean_norm(receiver.model)))


def _builtin(receiver: Receiver, name: str, module: BridgeModule) -> ModuleBridge:
    module = module.to(receiver.device).eval().requires_grad_(False)
    source = BridgeSource(hidden_size=module.source_width)
    if name == WEIGHTS:
        source = BridgeSource(
            receiver.model_id, receiver.revision, module.source_width, layer="last", normed=True
        )
    tensors = dict(module.state_dict())
    hashed = content_hash({"kind": name, "width": module.width}, arrays(tensors))
    return ModuleBridge(name, name, source, module, hashed, is_builtin=True)


def _embedded(model: Any) -> Iterator[torch.Tensor]:
    """Yield the input embeddings of the vocabulary, `[n, H_in]` float32, in chunks.

    Through the model's own module, because some scale the stored rows.
    """
    module = model.get_input_embeddings()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise BridgeError("the model has no input embeddings that can be read")
    for start in range(0, weight.shape[0], _CHUNK_TOKENS):
        end = min(start + _CHUNK_TOKENS, weight.shape[0])
        with torch.no_grad():
            yield module(torch.arange(start, end, device=weight.device)).float()


def _output_weights(model: Any) -> torch.Tensor:
    """Return the weights of the LM head, `[vocabulary, H]`."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise BridgeError("the model has no output embeddings that can be read")
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        dtype = str(weight.dtype).removeprefix("torch.")
        raise BridgeError(f"the output embeddings are quantised ({dtype})")
    return weight.detach()
