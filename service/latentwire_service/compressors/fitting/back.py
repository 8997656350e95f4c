"""The linear map from an embedding of a message back to the row that it stands for."""

from __future__ import annotations

import numpy as np

from latentwire.compressors.base import COMPRESSED, Rows
from latentwire.compressors.message_map import MessageMap
from latentwire.compressors.training_free import PLACES
from latentwire_service.compressors.fitting.recipe import Work

_PENALTY = 1.0


def fit_back(work: Work, message: MessageMap, width: int) -> dict[str, Rows]:
    """Fit it in closed form, in one pass over the training samples.

    Args:
        work: of the fit.
        message: makes messages; its own map back is not read.
        width: of the embeddings.

    Returns:
        `back.weight` `[W, H]` and `back.bias` `[H]`, float32.
    """
    gram = np.zeros((width + 1, width + 1))
    cross = np.zeros((width + 1, work.width))
    total = work.split.dataset.num_rows
    work.progress.begin("decompression", min(total, work.split.limit or total))
    for sample in work.split.training():
        arrays = message.compress(sample.rows)
        places = arrays[PLACES][:, 0].astype(np.intp)
        inputs = np.ones((len(places), width + 1))
        inputs[:, :-1] = arrays[COMPRESSED]
        gram += inputs.T @ inputs
        cross += inputs.T @ sample.rows[places]
        work.progress.advance()
    scale = max(float(gram.diagonal()[:-1].mean()), 1e-12)
    gram[np.arange(width), np.arange(width)] += _PENALTY * 1e-3 * scale
    solution = np.linalg.solve(gram, cross).astype(np.float32)
    return {"back.weight": solution[:-1], "back.bias": solution[-1]}
