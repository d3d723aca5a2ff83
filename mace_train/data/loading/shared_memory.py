"""SharedMemoryPool: reused shared memory in which loading workers pass Graphs to the trainer.

Fresh shared memory comes page by page, which can take several times as long as filling it with a
batch. Here every worker has a few buffers that it and the training process have both mapped. It
writes a Graph into one, sends the buffer's number, and may write it again when nothing in the
training process refers to the Graph any more; while none is free, torch allocates other memory.
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

BUFFERS_PER_WORKER = 4  # two queued, one being written or sent, one in use
FREE, IN_USE = 0, 1  # a worker claims its own buffers, the training process frees them
_OPEN: "weakref.WeakValueDictionary[int, SharedMemoryPool]" = weakref.WeakValueDictionary()


class SharedMemoryPool:
    """``BUFFERS_PER_WORKER`` buffers of ``size`` bytes, shared with processes forked later."""

    def __init__(self, n_workers: int, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        n_buffers = n_workers * BUFFERS_PER_WORKER
        # no file in /dev/shm, which many containers limit to 64 MB
        self.memory = mmap.mmap(-1, n_buffers * self._size)
        self.states = mmap.mmap(-1, n_buffers)  # FREE at first
        _OPEN[id(self)] = self

    def empty(
        self, n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype, n_inputs: int = 0
    ) -> PackedGraph:
        """In a worker: memory for a Graph, in a buffer if one is free and large enough."""
        info, sizes = get_worker_info(), (n_graphs, n_atoms, n_edges, dtype, n_inputs)
        if info is not None and n_bytes(*sizes) <= self._size:
            for index in range(info.id * BUFFERS_PER_WORKER, (info.id + 1) * BUFFERS_PER_WORKER):
                if self.states[index] == FREE:
                    self.states[index] = IN_USE
                    memory = torch.from_numpy(self.buffer(index))
                    return _InBuffer(memory, *sizes, pool=id(self), index=index)
        return PackedGraph.empty(*sizes)

    def buffer(self, index: int) -> NDArray[np.uint8]:
        """The memory [size] of a buffer."""
        return np.frombuffer(self.memory, np.uint8, self._size, index * self._size)


@dataclass(frozen=True, eq=False, kw_only=True)
class _InBuffer(PackedGraph):
    """A Graph in a buffer of the pool: pickles as the buffer's number."""

    pool: int  # key in _OPEN
    index: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.pool, self.index, self.sizes)


class _BufferInUse:
    """A buffer in the training process, free again when nothing refers to its memory."""

    def __init__(self, pool: SharedMemoryPool, index: int) -> None:
        self._pool, self._index = pool, index
        self.__array_interface__ = pool.buffer(index).__array_interface__

    def __del__(self) -> None:
        self._pool.states[self._index] = FREE


def _received(pool: int, index: int, sizes: tuple[int, int, int, torch.dtype, int]) -> PackedGraph:
    # the array keeps the _BufferInUse alive
    memory = torch.from_numpy(np.asarray(_BufferInUse(_OPEN[pool], index)))
    return PackedGraph(memory[: n_bytes(*sizes)], *sizes)
