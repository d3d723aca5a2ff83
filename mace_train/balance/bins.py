"""Bins of structure ids as two arrays, 8 bytes per structure and per bin; samples of an epoch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.costs import Costs
from mace_train.balance.counter_rng import sorted_by

Ints = NDArray[np.int64]
StructureIds = Ints


@dataclass(frozen=True, eq=False)
class Bins:
    """Bin b holds ids[offsets[b] : offsets[b + 1]], ascending."""

    ids: StructureIds  # [n_structures]
    offsets: Ints  # [n_bins + 1]

    def __len__(self) -> int:
        """The number of bins."""
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> StructureIds:
        """The structures of one bin."""
        if not 0 <= b < len(self):
            raise IndexError(f"bin {b} of {len(self)}")
        return self.ids[self.offsets[b] : self.offsets[b + 1]]

    @staticmethod
    def of(bin_of: Ints, ids: StructureIds, n_bins: int) -> "Bins":
        """From the bin of every structure, [n], and its id, [n]."""
        by_id = np.argsort(ids)
        order = by_id[sorted_by(_high(bin_of[by_id], n_bins))]
        offsets = np.zeros(n_bins + 1, np.int64)
        np.cumsum(np.bincount(bin_of, minlength=n_bins), out=offsets[1:])
        return Bins(ids[order], offsets)

    @staticmethod
    def listed(bins: Iterable[StructureIds]) -> "Bins":
        """From one array of ids [n] per bin."""
        bins = [np.asarray(ids, np.int64) for ids in bins]
        offsets = np.zeros(len(bins) + 1, np.int64)
        np.cumsum([len(ids) for ids in bins], out=offsets[1:])
        return Bins(np.concatenate([np.zeros(0, np.int64), *bins]), offsets)

    @staticmethod
    def joined(parts: "list[Bins]") -> "Bins":
        """The bins of all parts, one after the other."""
        starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        return Bins(np.concatenate([p.ids for p in parts]), np.concatenate([*offsets, starts[-1:]]))


@dataclass(frozen=True, eq=False)
class Samples:
    """The structures of one epoch, in ascending order."""

    n: int
    structure_of: NDArray[np.int32] | None = None
    """[n] the structure of every sample; None: every structure once."""
    origin: Mapping[str, Any] | None = None
    """What they follow from beside the epoch, as a checkpoint keeps it; None as above."""

    def __len__(self) -> int:
        """The number of samples."""
        return self.n

    def structures(self, samples: NDArray[np.int64]) -> StructureIds:
        """The structures of some ``samples`` [n]."""
        if self.structure_of is None:
            return samples
        return self.structure_of[samples].astype(np.int64)

    def costs(self, costs: Costs) -> Costs:
        """Those of every sample, from those of every structure."""
        return costs if self.structure_of is None else costs.subset(self.structure_of)


def _high(bins: Ints, n_bins: int) -> NDArray[np.uint64]:
    """Numbers of bins moved to the high bits of 64."""
    return bins.astype(np.uint64) << np.uint64(64 - max(1, (n_bins - 1).bit_length()))
