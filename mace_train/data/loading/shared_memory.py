"""SharedMemoryPool: memory in which loading workers hand over Graphs, used again and again.

Fresh shared memory comes page by page, which can take several times as long as filling it with a
batch. Here every worker has a few slots that it and the process
that trains have both mapped. It fills one, sends its number, and may fill it again when nothing in
the other process refers to the Graph any more; while none is free, torch hands over other memory.
"""

import mmap
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from mace_train.data.loading.packed import PackedGraph, n_bytes

PER_WORKER = 4  # two wait, one is filled or on its way, one is in use
FREE, TAKEN = 0, 1  # a worker takes its own slots, the process that trains frees them
_OPEN: "weakref.WeakValueDictionary[int, SharedMemoryPool]" = weakref.WeakValueDictionary()


class SharedMemoryPool:
    """``PER_WORKER`` pieces of ``size`` bytes per worker, shared with processes forked later."""

    def __init__(self, n_workers: int, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        n_slots = n_workers * PER_WORKER
        # no file in /dev/shm, which many containers limit to 64 MB
        self.memory = mmap.mmap(-1, n_slots * self._size)
        self.states = mmap.mmap(-1, n_slots)  # FREE at first
        _OPEN[id(self)] = self

    def empty(self, n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype) -> PackedGraph:
        """In a worker: memory for a Graph, in a slot if one is free and large enough."""
        info, sizes = get_worker_info(), (n_graphs, n_atoms, n_edges, dtype)
        if info is not None and n_bytes(*sizes) <= self._size:
            for slot in range(info.id * PER_WORKER, (info.id + 1) * PER_WORKER):
                if self.states[slot] == FREE:
                    self.states[slot] = TAKEN
                    memory = torch.from_numpy(self.piece(slot))
                    return _InSlot(memory, *sizes, slots=id(self), slot=slot)
        return PackedGraph.empty(*sizes)

    def piece(self, slot: int) -> NDArray[np.uint8]:
        """The memory of a slot."""
        return np.frombuffer(self.memory, np.uint8, self._size, slot * self._size)


@dataclass(frozen=True, eq=False)
class _InSlot(PackedGraph):
    """A Graph in a slot: what is sent to another process is the slot's number."""

    slots: int
    slot: int

    def __reduce__(self) -> tuple[Any, ...]:
        sizes = (self.n_graphs, self.n_atoms, self.n_edges, self.dtype)
        return _received, (self.slots, self.slot, sizes)


class _Lease:
    """A slot in the process that trains, free again when nothing refers to its memory."""

    def __init__(self, slots: SharedMemoryPool, slot: int) -> None:
        self._slots, self._slot = slots, slot
        self.__array_interface__ = slots.piece(slot).__array_interface__

    def __del__(self) -> None:
        self._slots.states[self._slot] = FREE


def _received(slots: int, slot: int, sizes: tuple[int, int, int, torch.dtype]) -> PackedGraph:
    memory = torch.from_numpy(np.asarray(_Lease(_OPEN[slots], slot)))  # which keeps the lease
    return PackedGraph(memory[: n_bytes(*sizes)], *sizes)
