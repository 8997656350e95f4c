"""One key per content of files: equal files share it, wherever they are and whatever their times.

A large file takes seconds to read, so its digest is kept, under an identity that changes with every
write: path, inode, size, and both times.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_KEY_CHARS = 32
# A file that changed this recently may change again without a new time, on coarse clocks.
_SETTLED_S = 3.0
_DIGEST_CHARS = hashlib.sha256().digest_size * 2


def content_key(files: Sequence[Path], memory: Path, salt: str) -> str:
    """Return a name for the content of files, in their order.

    Args:
        files: their names do not enter.
        memory: the directory of kept digests; it need not exist or be writable.
        salt: enters the key.

    Raises:
        OSError: a file cannot be read.
    """
    key = hashlib.sha256(salt.encode())
    for file in files:
        key.update(_digest(file, memory).encode())
    return key.hexdigest()[:_KEY_CHARS]


def _digest(file: Path, memory: Path) -> str:
    identity = _identity(file)
    kept = memory / hashlib.sha256(identity.encode()).hexdigest()[:_KEY_CHARS]
    with suppress(OSError, ValueError):
        digest = kept.read_text(encoding="ascii")
        if len(digest) == _DIGEST_CHARS:
            os.utime(kept)
            return digest
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if _identity(file) == identity and _is_settled(file):
        with suppress(OSError):
            _keep(kept, digest)
    return digest


def _identity(file: Path) -> str:
    status = file.stat()
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"{file.resolve()}:{numbers}"


def _is_settled(file: Path) -> bool:
    status = file.stat()
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S


def _keep(kept: Path, digest: str) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=kept.parent, prefix=".")
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(digest)
    Path(scratch).rename(kept)
