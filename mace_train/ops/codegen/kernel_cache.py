"""Generated sources and compiled kernels on disk.

A file is named by the SHA-256 of all that determines it, so that different machines can share a
home directory. It is written under another name and renamed, under a lock: of several processes
that need a file one makes it, and the others wait for it. The sources are kept by the recipe they
were generated from, since generating a large one takes longer than loading what was compiled from
it.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mace_train._paths import KERNELS


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mace-train" / "kernels"


def built(identity: str, suffix: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """The file that ``identity`` determines; ``make`` writes it to a path, if it is missing."""
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}{suffix}"
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                temporary = path.with_suffix(f".{os.getpid()}.part")
                make(temporary)
                os.replace(temporary, path)
    return path


def source_of(recipe: str, suffix: str, generate: Callable[[], str], folder: Path) -> str:
    """The source that a recipe gives, from the cache if it is there."""
    identity = f"{recipe}\0{_generator()}"
    path = built(identity, suffix, folder, lambda path: _write(path, generate()))
    return path.read_text()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@cache
def _generator() -> str:
    """A digest of ops/ and the skeletons, which make the sources."""
    digest = hashlib.sha256()
    for folder, pattern in ((Path(__file__).parents[1], "*.py"), (KERNELS, "*.cu*")):
        for path in sorted(folder.rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
