"""Compressors for tests of what happens around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentwire.compressors import CompressorError
from support.batch.stored import Rows


class Learned:
    """A compressor that was fitted to latents of one model; it fails at some lengths."""

    name, kind, k, output = "mine", "pca", 2, "rows"
    content_hash = "ab" * 32

    def __init__(self, width: int, model: str | None) -> None:
        self.of(width, model)

    def of(self, width: int, model: str | None) -> None:
        """Change the latents that it was fitted to."""
        self.source_width = width
        self.parameters: dict[str, Any] = {
            "k": 2,
            "source": {"model": model, "revision": None, "hidden_size": width},
        }

    def compress(self, latent: Rows) -> dict[str, Rows]:
        if latent.shape[1] != self.source_width:
            raise CompressorError(f"must have the width {self.source_width}")
        if len(latent) == 5:
            raise RuntimeError("a bad\nday")
        if len(latent) == 12:
            return {"hidden_state_comp": np.zeros((2, self.source_width + 1), np.float32)}
        return {"hidden_state_comp": latent[:2] * 2}
