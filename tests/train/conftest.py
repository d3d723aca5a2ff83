"""A stand-in for CUDA graphs where there is no GPU.

It lists the operations of one run: like a graph of kernels it keeps every number that Python saw
and the address of every tensor, and repeats the operations with the current values of these
tensors. To look at a value is an error, as in a capture.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mace_train.ops import convolution
from mace_train.train import build_model, log, setup
from mace_train.train.cuda_graphs import Replay, Tensors


class Operations(TorchDispatchMode):
    """The operations of one run, to be repeated on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "looks at a value"
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def again(self) -> None:
        for function, args, kwargs, before in self.done:
            after = function(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture_operations(
    function: Callable[[], Tensors], device: torch.device
) -> tuple[Replay, Tensors]:
    """A capture by the operations of one run, after one before it."""
    function()
    with Operations() as operations:
        outputs = function()
    return operations.again, outputs


@pytest.fixture
def stand_in(monkeypatch) -> None:
    """Captured graphs on the CPU, without the checks there that look at values."""
    monkeypatch.setattr(build_model, "check_cuda_graphs", lambda *_: None)
    monkeypatch.setattr(setup, "cuda_graph", capture_operations)
    monkeypatch.setattr(convolution, "_check", lambda *_: None)
    monkeypatch.setattr(convolution, "_check_pairs", lambda *_: None)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """Trainings draw no curves, the longest part of most; those of test_provenance.py do."""
    monkeypatch.setattr(log.MetricsLog, "_draw", lambda *_: None)
