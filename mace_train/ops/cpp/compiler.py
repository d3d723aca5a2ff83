"""Compiles C++ with the host's compiler and keeps the results in the cache.

A library is determined by its source, the flags, and all that the compiler predefines for this
machine: its version and instruction sets.
"""

import ctypes
import shutil
from functools import cache
from pathlib import Path

from mace_train.child_process import run_child
from mace_train.errors import InputError
from mace_train.ops.codegen.kernel_cache import built

FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
NO_COMPILER = (
    "kernels=cpp needs a working C++ compiler (c++, g++ or clang++) on the PATH; install one, or "
    "use kernels=reference"
)


@cache
def find_compiler() -> str | None:
    """Path of a C++ compiler of this host that takes our flags and vector types, or None."""
    found = filter(None, map(shutil.which, ("c++", "g++", "clang++")))
    return next((path for path in found if _takes_our_code(path)), None)


def _takes_our_code(compiler: str) -> bool:
    source = "typedef float V __attribute__((vector_size(16))); V f(V a, V b) { return a * b; }"
    command = [compiler, *FLAGS, "-S", "-x", "c++", "-", "-o", "-"]
    return run_child(command, input=source, capture_output=True).returncode == 0


@cache
def predefined_macros() -> str:
    """What the compiler predefines on this machine: its version and instruction sets."""
    command = [_compiler(), "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    return str(run_child(command, check=True, capture_output=True).stdout)


def register_width() -> int:
    """Bytes of a vector register of this machine."""
    macros = predefined_macros()
    if "__AVX512F__" in macros:
        return 64
    return 32 if "__AVX__" in macros else 16


def library(source: str, folder: Path) -> ctypes.CDLL:
    """The compiled source, from the cache if it is there."""
    identity = "\0".join([source, predefined_macros(), *FLAGS])
    path = built(identity, ".so", folder, lambda path: _compile(source, path))
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(
            f"{path}: this compiled kernel cannot be loaded ({error}); if its file system is "
            "mounted noexec, set XDG_CACHE_HOME to another folder, or use kernels=reference"
        ) from error


def _compiler() -> str:
    found = find_compiler()
    if found is None:
        raise InputError(NO_COMPILER)
    return found


def _compile(source: str, path: Path) -> None:
    command = [_compiler(), *FLAGS, "-x", "c++", "-", "-o", str(path)]
    done = run_child(command, input=source, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
