"""Compiles C++ with the host's compiler and keeps the results on disk.

A library is named by the SHA-256 of its source, the flags, and all that the compiler predefines for
this machine (its version and instruction sets), so that nodes of different kinds can share a home.
It is written under another name and renamed, under a lock: of several processes one compiles.
The sources are kept as well, by the recipe they were generated from, since generating a large one
takes longer than loading it.
"""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mace_train.errors import InputError

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
    return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0


@cache
def predefined_macros() -> str:
    """What the compiler predefines on this machine: its version and instruction sets."""
    command = [_compiler(), "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def register_width() -> int:
    """Bytes of a vector register of this machine."""
    macros = predefined_macros()
    if "__AVX512F__" in macros:
        return 64
    return 32 if "__AVX__" in macros else 16


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mace-train" / "kernels"


def library(source: str, folder: Path) -> ctypes.CDLL:
    """The compiled source, from the cache if it is there."""
    identity = "\0".join([source, predefined_macros(), *FLAGS])
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                _compile(source, path)
    return ctypes.CDLL(str(path))


def source_of(recipe: str, generate: Callable[[], str], folder: Path) -> str:
    """The source that a recipe gives, from the cache if it is there."""
    identity = f"{recipe}\0{_generator()}"
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.cpp"
    if path.exists():
        return path.read_text()
    source = generate()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(source)
    os.replace(temporary, path)
    return source


@cache
def _generator() -> str:
    """A digest of this package, which makes the sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _compiler() -> str:
    found = find_compiler()
    if found is None:
        raise InputError(NO_COMPILER)
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _compile(source: str, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.part")
    command = [_compiler(), *FLAGS, "-x", "c++", "-", "-o", str(temporary)]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    os.replace(temporary, path)
