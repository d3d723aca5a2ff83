"""Compilation of loops over arrays with numba, kept on disk between processes.

Numba keeps machine code beside the source, or in the user's cache folder where the installation is
read-only (NUMBA_CACHE_DIR overrides both). Where neither can be written, every process compiles
for itself. Compiled loops release the GIL, so that a thread can plan while another one trains.
"""

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function as machine code, made at its first call."""
    try:
        result: Function = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for the cache
        result = numba.njit(nogil=True)(function)
    return result
