"""Slots: memory in which loading workers hand over Graphs, used again and again.

Fresh shared memory comes page by page, which can take several times as long as filling it with a
batch (scripts/bench/data.py measures it). Here every worker has a few slots that it and the process
that trains have both mapped. It fills one, sends its number, and may fill it again when nothing in
the other process refers to the Graph any more; while it has none, torch hands over other memory.
"""

import mmap
import multiprocessing
import weakref
from collections import deque
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from mace_train.data.packed import Packed, n_bytes

PER_WORKER = 4  # two wait, one is filled or on its way, one is in use
_OPEN: "weakref.WeakValueDictionary[int, Slots]" = weakref.WeakValueDictionary()


class Slots:
    """``PER_WORKER`` pieces of ``size`` bytes per worker, shared with processes forked later."""

    def __init__(self, n_workers: int, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        # no file in /dev/shm, which many containers limit to 64 MB
        self._memory = mmap.mmap(-1, n_workers * PER_WORKER * self._size)
        self._free: list[SimpleQueue[int]] = []
        self._released: deque[int] = deque()
        for worker in range(n_workers):
            self._free.append(multiprocessing.get_context("fork").SimpleQueue())
            for slot in range(worker * PER_WORKER, (worker + 1) * PER_WORKER):
                self._free[worker].put(slot)
        _OPEN[id(self)] = self

    def empty(self, n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype) -> Packed:
        """In a worker: memory for a Graph, in a slot if one is free."""
        info = get_worker_info()
        sizes = (n_graphs, n_atoms, n_edges, dtype)
        if info is None or self._free[info.id].empty():
            return Packed.empty(*sizes)
        slot = self._free[info.id].get()
        return _InSlot(torch.from_numpy(self._piece(slot)), *sizes, slots=id(self), slot=slot)

    def received(self, slot: int) -> NDArray[np.uint8]:
        """In the process that trains: the memory of a slot, released with the last reference."""
        piece = self._piece(slot)
        # not at once to the worker: this runs wherever memory is freed, and a queue has a lock
        weakref.finalize(piece, self._released.append, slot).atexit = False
        return piece

    def give_back(self) -> None:
        """Let the workers fill what has been released."""
        while self._released:
            slot = self._released.popleft()
            self._free[slot // PER_WORKER].put(slot)

    def _piece(self, slot: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._memory, np.uint8, self._size, slot * self._size)


@dataclass(frozen=True, eq=False)
class _InSlot(Packed):
    """A Graph in a slot: what is sent to another process is the slot's number."""

    slots: int
    slot: int

    def __reduce__(self) -> tuple[Any, ...]:
        sizes = (self.n_graphs, self.n_atoms, self.n_edges, self.dtype)
        return _received, (self.slots, self.slot, sizes)


def _received(slots: int, slot: int, sizes: tuple[int, int, int, torch.dtype]) -> Packed:
    memory = torch.from_numpy(_OPEN[slots].received(slot))
    return Packed(memory[: n_bytes(*sizes)], *sizes)
