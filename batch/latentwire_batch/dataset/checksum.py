"""CRC-32, as fast as this processor computes it."""

from __future__ import annotations

import zlib
from collections.abc import Callable


def _fastest() -> Callable[..., int]:
    """Return zlib-ng's, which uses the processor's instructions: most builds of zlib do not.

    Both give the same checksum, so files do not depend on which one is installed.
    """
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        # There is no wheel for every platform.
        return zlib.crc32
    return zlib_ng.crc32


crc32 = _fastest()
"""`crc32(data, value=0)`, as in `zlib`: of some bytes, or of earlier ones and these."""
