"""Gradients of a convolution on a GPU where an edge and its reverse share a row of r.

The gradient of such a row is a sum over both edges. Either a loop over the edges of receivers
writes a row for each and another kernel adds them up, or a loop over pairs writes the sum at once:
it moves less of r and of its gradients, and gathers what belongs to the second edge's receiver.
Which of them is faster a clock must say (``gradients_by_pair`` of ``cuda_tuning``; without it, the
first one).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.ops import cuda_driver
from mace_train.ops.compiled import CompiledKernel
from mace_train.ops.cuda_tuning import choices_of

MOST_CHANNELS = 256  # of a loop over pairs, where a block has a thread for each


def visits_pairs(device: torch.device, n_channels: int) -> bool:
    """Whether gradients are computed pair by pair."""
    return (
        n_channels <= MOST_CHANNELS
        and choices_of(cuda_driver.architecture(device)).gradients_by_pair
    )


@dataclass(frozen=True)
class PairOrder:
    """Edges in the order of their pairs."""

    order: Tensor  # [n_edges] int64
    first: Tensor  # [n_pairs + 1] int64, into order

    @classmethod
    def of(cls, pairs: Tensor, first_of_pair: Tensor, is_second: Tensor) -> "PairOrder":
        """Of the row of every edge [n_edges], the first edge of each; waits for no device."""
        edges, later = torch.arange(len(pairs), device=pairs.device), is_second.long()
        counts = torch.ones_like(first_of_pair).scatter_add(0, pairs, later)
        first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return cls(edges.scatter(0, first.index_select(0, pairs) + later, edges), first)

    def index(self, first: Tensor, senders: Tensor) -> list[Tensor]:
        """What a loop over pairs takes; ``first`` says where the edges of receivers begin."""
        edges = torch.arange(len(senders), device=senders.device)
        receivers = torch.searchsorted(first[1:].contiguous(), edges, right=True)
        return [self.order, self.first, senders, receivers]

    def sums(self, kernel: CompiledKernel, of_edge: Tensor) -> Tensor:
        """Rows per pair from rows per edge, of which there may be more than edges."""
        n_pairs = len(self.first) - 1
        total = of_edge.new_empty(n_pairs, *of_edge.shape[1:])
        index = [self.order, self.first, self.first]
        kernel.run(n_pairs, index, [of_edge], [total], of_edge.shape[2])
        return total
