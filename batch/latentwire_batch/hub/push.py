"""`--push-to-hub`: a finished dataset in the hub layout as one commit to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.split_files import DATA_DIRECTORY, split_of
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import BatchError, StorageError, UsageError
from latentwire_batch.locations.hub_commits import commit_files, keep_hub_quiet
from latentwire_batch.output.layout import FINAL_NAMES, MANIFEST_NAME
from latentwire_batch.output.split_data import split_data
from latentwire_batch.shards.shard import Shard

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_RERUN = "the dataset is complete here; rerun the same command to push it"
_REASONS = {
    401: "it does not accept the token; HF_TOKEN or `hf auth login` sets another one",
    403: "the token may not write there",
    404: "there is no such user or organization, or the token may not see it",
    413: "a file is too large for it",
    429: "there were too many requests",
}


@dataclass(frozen=True)
class HubTarget:
    """Where a dataset is pushed to.

    Attributes:
        repository: `owner/name`, or a name alone for the token's owner.
        is_private: whether it is made private if it does not exist.
    """

    repository: str
    is_private: bool = False

    def check(self) -> None:
        """Check what can be known before the dataset is made.

        Raises:
            UsageError: when the name cannot be one, there is no token, or the hub is switched off.
        """
        from huggingface_hub import constants, get_token

        if not _REPOSITORY.fullmatch(self.repository):
            raise UsageError("--push-to-hub: must be the name of a dataset, like owner/name")
        if constants.HF_HUB_OFFLINE:
            raise UsageError("--push-to-hub: HF_HUB_OFFLINE switches the hub off")
        if not get_token():
            raise UsageError(
                "--push-to-hub: there is no token; set HF_TOKEN or run `hf auth login`"
            )

    def push(self, directory: Path, notify: Notify) -> None:
        """Make the dataset on the hub equal to a finished one. Pushing it again changes nothing.

        Args:
            directory: the output, in the hub layout.
            notify: told about the push.

        Raises:
            StorageError: when the hub refuses it, or cannot be reached.
            UsageError: when the hub holds another dataset under this name.
        """
        from huggingface_hub import HfApi

        keep_hub_quiet()
        names = [name for name in FINAL_NAMES if (directory / name).is_file()]
        names = [*split_data(directory), *names]
        num_bytes = sum((directory / name).stat().st_size for name in names)
        notify(f"pushing {len(names)} files ({num_bytes:,} bytes) to {self.repository} on the hub")
        api = HfApi()
        with _errors():
            made = api.create_repo(
                self.repository,
                repo_type="dataset",
                private=True if self.is_private else None,
                exist_ok=True,
            )
            repository = made.repo_id
            present = api.list_repo_files(repository, repo_type="dataset")
            stale = _stale(present, names)
            commit_files(repository, {name: directory / name for name in names}, stale)
        notify(f"the dataset is on the hub: {repository}")


def hub_target(settings: CollectSettings, shard: Shard | None) -> HubTarget | None:
    """Return where a collection is pushed to, checked before anything is sent; None: nowhere.

    Raises:
        UsageError: when it cannot be pushed.
    """
    if settings.push_to_hub is None:
        if settings.private:
            raise UsageError("--private: is for --push-to-hub")
        return None
    if settings.layout != "hub":
        raise UsageError("--push-to-hub: needs --layout hub")
    if not isinstance(settings.output_dir, Path):
        raise UsageError("--push-to-hub: needs an --output-dir on this machine, not a URL")
    if shard is not None:
        raise UsageError("--push-to-hub: is for a whole dataset, not for a shard of it")
    target = HubTarget(settings.push_to_hub, settings.private)
    target.check()
    return target


def _stale(present: Sequence[str], names: Sequence[str]) -> list[str]:
    """Name the files of an earlier push that the new dataset does not have.

    Raises:
        UsageError: when files of a dataset are there that was not pushed from here.
    """
    ours = [name for name in present if name in FINAL_NAMES or _is_split_data(name)]
    if any(map(_is_split_data, ours)) and MANIFEST_NAME not in ours:
        raise UsageError(
            "--push-to-hub: holds a dataset that was not made by latentwire; name another one"
        )
    return sorted(set(ours) - set(names))


def _is_split_data(name: str) -> bool:
    directory, _, rest = name.partition("/")
    return directory == DATA_DIRECTORY and split_of(rest) is not None


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the library's errors into one line, without addresses and tokens."""
    try:
        yield
    except BatchError:
        raise
    except Exception as error:
        raise StorageError(f"--push-to-hub: {_reason(error)}; {_RERUN}") from error


def _reason(error: BaseException) -> str:
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    for one in chain:
        response: Any = getattr(one, "response", None)
        status = getattr(response, "status_code", None)
        if status is not None:
            reason = _REASONS.get(status, f"it answered with status {status}")
            return f"the hub refused the dataset: {reason}"
    if any(map(_is_of_the_network, chain)):
        return "the hub cannot be reached, or the connection broke"
    return f"the push failed ({type(error).__name__})"


def _is_of_the_network(error: BaseException) -> bool:
    # The library's HTTP client, and with it the classes of its errors, depends on its version.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})
