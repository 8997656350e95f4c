"""A bridge over a torch module, and its form for latent steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.engine.seams.bridge import BridgeError, BridgePrompt, BridgeSource, Rows


@dataclass(frozen=True, eq=False)
class StepBridge:
    """A row-wise bridge as the function that feeds latent steps.

    Attributes:
        module: maps `[B, H]` to `[B, H_in]`.
    """

    module: BridgeModule

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows `[B, H]` to `[B, H_in]` float32 on the same device, each by itself."""
        result: torch.Tensor = self.module(rows.float())
        return result


# Its parts are compared by identity: a module has no value.
@dataclass(frozen=True, eq=False)
class ModuleBridge:
    """A bridge whose map is a torch module on the receiver's device.

    Attributes:
        name: unique among the loaded bridges.
        kind: how it maps.
        source: the latents that it was made for.
        module: the map, in float32.
        content_hash: SHA-256 of what decides its values.
        prompt: the message that it was fitted with.
        is_builtin: whether it was made from the loaded model.
        start: `[width]` float32, the embedding that ends the prompt before latent steps, if the
            bridge has one.
    """

    name: str
    kind: str
    source: BridgeSource
    module: BridgeModule
    content_hash: str
    prompt: BridgePrompt | None = None
    is_builtin: bool = False
    start: torch.Tensor | None = None

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.module.width

    @property
    def device(self) -> torch.device:
        """The device that the map runs on."""
        return self.module.device

    @property
    def is_row_wise(self) -> bool:
        """Whether each row is mapped by itself."""
        return self.module.is_row_wise

    def num_rows(self, num_rows: int) -> int:
        """Return how many embeddings it makes of so many rows: as many."""
        return num_rows

    @cached_property
    def step(self) -> StepBridge:
        """The bridge as a function for latent steps; the same object each time."""
        return StepBridge(self.module)

    def apply_torch(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., L, H_sender]` float32 on the module's device to `[..., L, width]`."""
        result: torch.Tensor = self.module(rows)
        return result

    def apply(self, rows: Rows) -> Rows:
        """Map the rows of one latent, as `Bridge.apply`."""
        width = self.module.source_width
        if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
            shape = " x ".join(map(str, rows.shape))
            raise BridgeError(f"bridge {self.name} reads rows of width {width}, not {shape}")
        with torch.inference_mode():
            # A copy: the caller's rows may be a read-only view, which torch warns about.
            given = torch.tensor(rows, dtype=torch.float32, device=self.device)
            embeddings = self.module(given)
            if not torch.isfinite(embeddings).all():
                raise BridgeError(
                    f"bridge {self.name} makes values that are not finite of these rows"
                )
        result: Rows = embeddings.cpu().numpy()
        return result


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Rows]:
    """Return tensors as float32 arrays, by name; views where they are float32 on the CPU."""
    return {
        name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in tensors.items()
    }
