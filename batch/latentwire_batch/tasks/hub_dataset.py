"""A dataset of the Hugging Face hub, saved in a form that the reader streams."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentwire_batch.errors import InputError


@contextmanager
def saved_hub_dataset(name: str, split: str, temp_dir: Path | None) -> Iterator[Path]:
    """Save one split as a `load_from_disk` directory that lives as long as the context.

    Args:
        name: of the dataset.
        split: of the dataset.
        temp_dir: parent of the directory; None: the system's directory for temporary files.

    Raises:
        InputError: when it cannot be loaded.
    """
    # Importing it takes a second, and nothing else needs it.
    import datasets

    with tempfile.TemporaryDirectory(prefix="latentwire-", dir=temp_dir) as directory:
        try:
            loaded = datasets.load_dataset(name, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            # The error's own text may hold paths of the cache.
            reason = type(error).__name__
            raise InputError(f"--dataset_name: cannot be loaded ({reason})") from error
        path = Path(directory) / "dataset"
        loaded.save_to_disk(str(path))
        yield path
