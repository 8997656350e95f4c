"""Changes of several files of a repository on the Hugging Face hub as one commit.

Large files are uploaded before the commit, and the hub keeps those that have arrived, so a commit
that was cut short continues. Readers never see a part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_MESSAGE = "Latents made by latentwire"


def commit_files(
    repository: str,
    added: Mapping[str, Path],
    removed: Iterable[str],
    *,
    repo_type: str = "dataset",
    revision: str | None = None,
) -> None:
    """Add, replace and remove files by one commit. Without a change there is no commit.

    Args:
        repository: `owner/name`.
        added: local files, by their names in the repository.
        removed: names of files that are in the repository.
        repo_type: as the library names it.
        revision: branch that gets the commit; None: the main one.

    Raises:
        Exception: whatever the library raises.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    keep_hub_quiet()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=name) for name in removed
    ]
    operations += [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in added.items()
    ]
    HfApi().create_commit(
        repository,
        operations,
        commit_message=_MESSAGE,
        repo_type=repo_type,
        revision=revision,
    )


def keep_hub_quiet() -> None:
    """Switch off the library's warnings, and its progress bars unless a person looks."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
