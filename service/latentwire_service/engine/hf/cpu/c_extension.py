"""C code of this package, compiled for the CPU it runs on when it is first needed.

Owns the compiler and the loading; what a function computes is the business of the module that calls
it. Without GCC, or where temporary files may not be executed, nothing is loaded, and callers do
without. (Clang's OpenMP is not the one that torch's Linux wheels carry.)
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

# Sums may be taken in any order, so that loops become vector instructions; NaN and infinity keep
# their meaning. OpenMP's functions are not linked: they are those of torch's own library, which is
# loaded already, so that both use one pool of threads.
_COMPILE = (
    *("-c", "-O3", "-march=native", "-fPIC", "-fopenmp", "-std=gnu11"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_WIDE_VECTORS = "-mprefer-vector-width=512"


@cache
def load(source: str) -> ctypes.CDLL | None:
    """Compile and load a C file of this folder, once per process; takes about a second.

    Nothing is kept on disk: what is compiled for one machine may not run on another that shares it.

    Args:
        source: the file's name.

    Returns:
        the library; None when there is no C compiler or its product does not load.
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
        logger.warning("%s is not compiled, torch does its work: %s", source, _reason(error))
        return None


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Say in one line why: the loader's or the compiler's own last words."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines()
        return lines[-1] if lines else f"the compiler ended with status {error.returncode}"
    if isinstance(error, FileNotFoundError):
        return "there is no C compiler"
    return str(error)


def _vector_flags(compiler: list[str]) -> list[str]:
    """Ask for 512-bit vectors where the compiler knows them: some use half of an AVX-512 unit."""
    try:
        _run(*compiler, _WIDE_VECTORS, "-x", "c", "-fsyntax-only", os.devnull)
    except subprocess.SubprocessError:
        return []
    return [_WIDE_VECTORS]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
