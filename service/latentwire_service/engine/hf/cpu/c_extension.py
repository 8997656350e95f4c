"""C code of this package, compiled on first use for the CPU that runs it.

This module compiles and loads; the modules that call a function know what it computes. Without GCC,
or if temporary files cannot be executed, nothing is loaded, and callers use torch. Clang does not
serve, because its OpenMP library differs from the one in torch's Linux wheels.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

# Sums may be reordered, so that loops become vector instructions; NaN and infinity keep their
# meaning. OpenMP is not linked, because torch has loaded its own copy: both share its thread pool.
_COMPILE = (
    *("-c", "-O3", "-march=native", "-fPIC", "-fopenmp", "-std=gnu11"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_WIDE_VECTORS = "-mprefer-vector-width=512"


@cache
def load(source: str) -> ctypes.CDLL | None:
    """Compile and load a C file of this folder, once per process. This takes about a second.

    Nothing stays on disk, because machines that share a disk may have different CPUs.

    Args:
        source: the name of the file.

    Returns:
        the library; None if there is no C compiler, or if its output does not load.
    """
    path = Path(__file__).with_name(source)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        with tempfile.TemporaryDirectory(prefix="latentwire-") as folder:
            unit, library = Path(folder, "unit.o"), Path(folder, "library.so")
            _run(*compiler, *_COMPILE, *_vector_flags(compiler), str(path), "-o", str(unit))
            _run(*compiler, "-shared", str(unit), "-o", str(library), "-lm")
            return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("cannot compile %s, using torch instead: %s", source, _reason(error))
        return None


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Return the reason in one line: the last line of the compiler, or the loader's message."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines()
        return lines[-1] if lines else f"the compiler exited with status {error.returncode}"
    if isinstance(error, FileNotFoundError):
        return "there is no C compiler"
    return str(error)


def _vector_flags(compiler: list[str]) -> list[str]:
    """Return the flag for 512-bit vectors if the compiler has it; GCC prefers 256 bits itself."""
    try:
        _run(*compiler, _WIDE_VECTORS, "-x", "c", "-fsyntax-only", os.devnull)
    except subprocess.SubprocessError:
        return []
    return [_WIDE_VECTORS]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
