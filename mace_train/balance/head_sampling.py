"""How often the structures of every head come in an epoch: sampling ratios.

A head of n structures has a ratio k = p / q. Its structures stand in a random order, which is
repeated without end; an epoch takes the next k n of them:

    epoch e of q:   o_0 o_1 ... o_(n-1) o_0 o_1 ...   from floor(e k n) to floor((e + 1) k n)

So "exactly once per epoch" becomes, for every structure of the head:

- in each epoch floor(k) or ceil(k) times, and floor or ceil of k n samples of the head in all;
- in every q epochs, counted from the first, exactly p times.

With k = 4 each comes four times, with k = 1/3 once in three epochs and another third of them in
each, with k = 5/2 two or three times in one epoch and five times in two. After q epochs the order
is a new one. It follows from (seed, epoch // q, head) alone, so every rank has the same samples,
and none is saved. A sample is a structure that an epoch holds, one for each time that it comes.
Samples are numbered by structure, and packers see them as structures, so repeats may share a bin.

Cost: 8 bytes per structure and 4 per sample in arrays, and one sort of the structures of a head
whose ratio is no whole number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.bins import Samples
from mace_train.balance.costs import UNLIMITED, Costs, EpochSize
from mace_train.balance.counter_rng import Stream, shuffled
from mace_train.checks import check_head
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings

RATIOS = "head_sampling_ratios"  # in what a checkpoint keeps of a plan


@dataclass(frozen=True, eq=False)
class Heads:
    """The head of every structure."""

    names: Sequence[str]
    index_of: NDArray[np.int64]  # [n_structures] index into names


@dataclass(frozen=True, eq=False)
class HeadSampling:
    """The samples of every epoch; see the module's docstring.

    Raises ``InputError`` where an epoch would hold no sample, or more than 2^31 - 1.

    >>> heads = Heads(("new", "old"), np.array([0, 1, 1, 1]))
    >>> sampling = HeadSampling(heads, (Fraction(2), Fraction(1, 3)), seed=1)
    >>> epochs = [sampling.samples(epoch).structure_of.tolist() for epoch in range(3)]
    >>> [ids[:2] for ids in epochs], sorted(i for ids in epochs for i in ids[2:])
    ([[0, 0], [0, 0], [0, 0]], [1, 2, 3])
    """

    heads: Heads
    ratios: tuple[Fraction, ...]  # of every head
    seed: int

    def __post_init__(self) -> None:
        """Check the number of samples."""
        least, most = self.bounds
        if least < 1 or most > UNLIMITED:
            given = ", ".join(f"{name}: {ratio}" for name, ratio in self._named().items())
            what = "no structure" if least < 1 else f"{most:,} structures"
            raise InputError(
                f"batching.head_sampling_ratios={{{given}}}: an epoch would hold {what}; it must "
                f"hold at least 1 and at most {UNLIMITED:,} (they are counted in 32 bits)"
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most samples that an epoch may hold."""
        means = [ratio * n for ratio, n in zip(self.ratios, self._n_of_heads, strict=True)]
        return sum(map(floor, means)), sum(map(ceil, means))

    @cached_property
    def _n_of_heads(self) -> list[int]:
        """Structures of every head."""
        return np.bincount(self.heads.index_of, minlength=len(self.ratios)).tolist()

    def _named(self) -> dict[str, str]:
        return {name: str(k) for name, k in zip(self.heads.names, self.ratios, strict=True)}

    @property
    def origin(self) -> dict[str, Any]:
        """What the samples of an epoch follow from beside the heads; ``sampling_from`` reads it."""
        return {"seed": self.seed, RATIOS: self._named()}

    def range_of(self, head: int, epoch: int) -> tuple[int, int]:
        """Where the samples of a head begin and end in its repeated order."""
        p, q = self.ratios[head].as_integer_ratio()
        n, e = self._n_of_heads[head], epoch % q
        return e * p * n // q, (e + 1) * p * n // q

    def n_samples(self, epoch: int) -> list[int]:
        """The samples of every head in an epoch."""
        ranges = [self.range_of(head, epoch) for head in range(len(self.ratios))]
        return [stop - start for start, stop in ranges]

    def samples(self, epoch: int) -> Samples:
        """The samples of an epoch, checked."""
        counts = self.counts(epoch)
        self.check(counts, epoch)
        structure_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return Samples(len(structure_of), structure_of, self.origin)

    def counts(self, epoch: int) -> NDArray[np.int32]:
        """How often every structure comes in an epoch, [n_structures]."""
        whole = np.array([floor(ratio) for ratio in self.ratios], dtype=np.int32)
        counts = whole[self.heads.index_of]
        for head, ratio in enumerate(self.ratios):
            ids = np.flatnonzero(self.heads.index_of == head) if ratio.denominator > 1 else ()
            if len(ids) == 0:
                continue
            start, stop = self.range_of(head, epoch)
            order = shuffled(len(ids), self.seed, epoch // ratio.denominator, Stream.HEADS, head)
            first, more = start % len(ids), stop - start - floor(ratio) * len(ids)
            counts[ids[order[np.arange(first, first + more) % len(ids)]]] += 1
        return counts

    def check(self, counts: NDArray[np.int32], epoch: int) -> None:
        """Check that every structure comes floor(k) or ceil(k) times, and every head k n times."""
        for head, n in enumerate(self.n_samples(epoch)):
            ratio, of_head = self.ratios[head], counts[self.heads.index_of == head]
            within = (of_head >= floor(ratio)) & (of_head <= ceil(ratio))
            assert within.all(), "a structure comes too often or too rarely"
            assert of_head.sum(dtype=np.int64) == n, "a head has another number of samples"

    def mean_epoch(self, costs: Costs) -> EpochSize:
        """Structures, atoms and edges of an epoch, on average over epochs, from ``costs`` [n]."""
        n_structures = n_atoms = n_edges = Fraction(0)
        for head, ratio in enumerate(self.ratios):
            of_head = self.heads.index_of == head
            n_structures += ratio * int(of_head.sum())
            n_atoms += ratio * int(costs.n_atoms[of_head].sum())
            n_edges += ratio * int(costs.n_edges[of_head].sum())
        return EpochSize(n_structures, n_atoms, n_edges)

    def describe(self, epoch: int) -> str:
        """What an epoch holds, for the log."""
        of_heads = [
            f"{n:,} of head {name} ({n_head:,} structures, ratio {ratio})"
            for name, n, n_head, ratio in zip(
                self.heads.names,
                self.n_samples(epoch),
                self._n_of_heads,
                self.ratios,
                strict=True,
            )
        ]
        total = sum(self.n_samples(epoch))
        return f"an epoch holds {total:,} samples: {', '.join(of_heads)}"


def head_sampling(
    settings: BatchingSettings, heads: Heads | None, seed: int
) -> HeadSampling | None:
    """The sampling that the settings ask for; None where every structure comes once per epoch.

    Raises ``InputError`` for a head that is not there, or without any ``heads``.
    """
    by_head = settings.ratios_by_head()
    if not by_head:
        return None
    if heads is None:
        raise InputError(
            "batching.head_sampling_ratios: the heads of the structures are not given; name the "
            "head of each, or leave the ratios out"
        )
    for name in by_head:
        check_head(f"batching.head_sampling_ratios.{name}", name, heads.names, "the data")
    if all(ratio == 1 for ratio in by_head.values()):
        return None
    ratios = tuple(by_head.get(name, Fraction(1)) for name in heads.names)
    return HeadSampling(heads, ratios, seed)


def sampling_from(origin: Mapping[str, Any], heads: Heads) -> HeadSampling | None:
    """The sampling of a checkpoint, whose ``origin`` it keeps; None for one without ratios."""
    given = BatchingSettings(head_sampling_ratios=origin.get(RATIOS))
    return head_sampling(given, heads, int(origin["seed"]))
