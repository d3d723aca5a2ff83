"""Linear maps that act on the channels of each degree alone.

    y[n, lm, v] = (fan_in_l)^(-1/2) sum_u x[n, lm, u] W_l[u, v]

Features are stored as [n_atoms, (l_max + 1)^2, n_channels] with channels contiguous (e3nn's
"ir_mul"), so each degree is one matrix product. Weights are flat as in e3nn: degree after degree,
[channels in, channels out] row-major, normal with unit variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mace_train.model.matmul_precision import MatmulModule
from mace_train.ops.grouped_matmul import grouped_matmul
from mace_train.ops.symmetric_contraction import Chunks

ATOMS_PER_CHUNK = 16  # of ElementSlots


def split_degrees(features: Tensor) -> list[Tensor]:
    """Degrees [n_atoms, 2l + 1, n_channels] of features [n_atoms, (l_max + 1)^2, n_channels]."""
    sizes: list[int] = []
    while sum(sizes) < features.shape[1]:
        sizes.append(2 * len(sizes) + 1)
    return list(torch.split(features, sizes, 1))


class DegreeLinear(MatmulModule):
    """One matrix per degree, shared by all elements."""

    def __init__(self, fan_in: Sequence[int], n_out: int) -> None:
        super().__init__()
        self.fan_in = tuple(fan_in)
        self.n_out = n_out
        self.weight = nn.Parameter(torch.randn(sum(self.fan_in) * n_out))

    def forward(self, degrees: Sequence[Tensor]) -> Tensor:
        """Features [n_atoms, (l_max + 1)^2, n_out] from degrees [n_atoms, 2l + 1, fan_in[l]]."""
        assert len(degrees) == len(self.fan_in)
        blocks = torch.split(self.weight.view(-1, self.n_out), list(self.fan_in))
        outputs = [
            self.matmul(degree, block * block.shape[0] ** -0.5)
            for degree, block in zip(degrees, blocks, strict=True)
        ]
        return torch.cat(outputs, dim=1)


@dataclass(frozen=True)
class ElementGroups:
    """Atoms sorted by element, so that one matrix product serves all atoms of an element."""

    order: Tensor  # [n_atoms] int64: atoms, sorted by element
    rank: Tensor  # [n_atoms] int64: place of each atom in order
    first: Tensor  # [n_elements + 1] int64, into order; on the CPU

    @classmethod
    def of(cls, elements: Tensor, n_elements: int) -> "ElementGroups":
        """Groups of elements [n_atoms]; waits for the device once."""
        counts = torch.bincount(elements, minlength=n_elements).cpu()
        order = torch.argsort(elements, stable=True)
        first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return cls(order, torch.argsort(order), first)


@dataclass(frozen=True)
class ElementSlots:
    """The same in shapes that follow from the number of atoms alone: groups cut into chunks.

    A chunk is a number of slots for atoms of one element; slots that are left over are empty.
    """

    atom_of_slot: Tensor  # [n_slots] int64, n_atoms where the slot is empty
    slot_of_atom: Tensor  # [n_atoms] int64
    element_of_chunk: Tensor  # [n_chunks] int64

    @classmethod
    def of(cls, elements: Tensor, n_elements: int) -> "ElementSlots":
        """Slots of elements [n_atoms]; waits for no device."""
        n_atoms, size = elements.shape[0], ATOMS_PER_CHUNK
        chunks = Chunks.of_size(elements, n_elements, size)
        place = chunks.first[:-1, None] + torch.arange(size, device=elements.device)
        filled = place < chunks.first[1:, None]
        # one atom more stands for all that are missing
        order = torch.cat((chunks.order, chunks.order.new_full((1,), n_atoms)))
        atom_of_slot = order[torch.where(filled, place, n_atoms)].flatten()
        slots = torch.arange(atom_of_slot.shape[0], device=elements.device)
        slot_of_atom = torch.zeros_like(order).scatter(0, atom_of_slot, slots)[:n_atoms]
        return cls(atom_of_slot, slot_of_atom, chunks.index)


class ElementLinear(MatmulModule):
    """One matrix per degree and element: y = x W_(l, z) / sqrt(n_channels * n_elements)."""

    def __init__(self, n_degrees: int, n_elements: int, n_channels: int) -> None:
        super().__init__()
        self.shape = (n_degrees, n_channels, n_elements, n_channels)
        self.weight = nn.Parameter(torch.randn(n_degrees * n_channels**2 * n_elements))

    def forward(self, features: Tensor, groups: ElementGroups | ElementSlots) -> Tensor:
        """Features [n_atoms, n_degrees^2, n_channels] from features of at least these degrees."""
        n_degrees, n_channels, n_elements, _ = self.shape
        norm = (n_channels * n_elements) ** -0.5
        matrices = (norm * self.weight.view(self.shape)).transpose(1, 2).unbind(0)
        features = features[:, : n_degrees**2]
        if isinstance(groups, ElementSlots):
            one_more = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, 1))
            rows, back = one_more.index_select(0, groups.atom_of_slot), groups.slot_of_atom
        else:
            rows, back = features.index_select(0, groups.order), groups.rank
        outputs = [
            self._product(degree, of_degree, groups)
            for degree, of_degree in zip(split_degrees(rows), matrices, strict=True)
        ]
        return torch.cat(outputs, dim=1).index_select(0, back)

    def _product(self, x: Tensor, w: Tensor, groups: ElementGroups | ElementSlots) -> Tensor:
        """Products of rows x [n_rows, n, n_channels] with the matrices of their elements."""
        if isinstance(groups, ElementSlots):
            of_chunk = w.index_select(0, groups.element_of_chunk)
            return self.matmul(x.reshape(of_chunk.shape[0], -1, x.shape[2]), of_chunk).view(x.shape)
        if self.matmul_dtype is None:
            return grouped_matmul(x, w, groups.first)
        narrow, weights = (t.to(self.matmul_dtype) for t in (x, w))
        return grouped_matmul(narrow, weights, groups.first).to(x.dtype)
