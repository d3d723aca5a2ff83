"""What depends on the elements at both ends of an edge: distance transforms and pair repulsion.

    Agnesi   T(r) = 1 / (1 + a u^q / (1 + u^(q - p))),       u = 2 r / (R_i + R_j)
    Soft     T(r) = r0 + (r - r0) (1 + tanh(s (r - m))) / 2
    ZBL      V_n  = 1/2 sum_{edges to n} K Z_i Z_j / r phi(r / a_ij) f(r / (R_i + R_j))

with covalent radii R (ASE's, Å). The Bessel functions see T(r) in place of r, the cutoff sees r
(arXiv 2311.05063 for Agnesi). ZBL is the universal repulsion of Ziegler, Biersack and Littmark
(1985) with the polynomial f of the radial basis as its envelope. All constants are mace-torch's,
in which none of them is trained.
"""

from collections.abc import Callable

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from mace_train.model.batch_index import EdgeEnds
from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import Float
from mace_train.model.radial import envelope
from mace_train.ops.row_sums import Sums

AGNESI = {"q": 0.9183, "p": 4.5791, "a": 1.0805}
SOFT = {"alpha": 4.0}
ZBL = {"a_exp": 0.300, "a_prefactor": 0.4543}
ZBL_WEIGHTS = (0.1818, 0.5099, 0.2802, 0.02817)
_ZBL_DECAYS = (3.2, 0.9423, 0.4028, 0.2016)
_BOHR, _COULOMB = 0.529, 14.3996  # Å, eV Å; as rounded by mace-torch


class _SpeciesTable:
    """A number for each pair of species (elements)."""

    def __init__(self, values: Float) -> None:
        self._table = ConstantTensor(values.flatten())

    def __call__(self, species: Tensor, like: Tensor) -> Tensor:
        return self._table.like(like).index_select(0, species)


def _radii(atomic_numbers: tuple[int, ...]) -> Float:
    """Sums [n_elements, n_elements] of covalent radii, Å."""
    radii: Float = np.asarray(covalent_radii, dtype=np.float64)[list(atomic_numbers)]
    return radii[:, None] + radii[None, :]


class AgnesiTransform:
    """Lengths to (0, 1), alike for all pairs of elements."""

    def __init__(self, atomic_numbers: tuple[int, ...]) -> None:
        self._radius = _SpeciesTable(0.5 * _radii(atomic_numbers))

    def __call__(self, lengths: Tensor, species: Tensor) -> Tensor:
        """Transformed lengths [n_pairs]."""
        q, p, a = AGNESI["q"], AGNESI["p"], AGNESI["a"]
        u = lengths / self._radius(species, lengths)
        return (1 + a * u**q / (1 + u ** (q - p))).reciprocal()


class SoftTransform:
    """Lengths as they are, but for short ones, which end at 3/4 of the radii's sum."""

    def __init__(self, atomic_numbers: tuple[int, ...]) -> None:
        self._radius = _SpeciesTable(_radii(atomic_numbers))

    def __call__(self, lengths: Tensor, species: Tensor) -> Tensor:
        """Transformed lengths [n_pairs], Å."""
        radius = self._radius(species, lengths)
        low, high = 3 / 4 * radius, 4 / 3 * radius
        steepness = SOFT["alpha"] / (high - low)
        share = 0.5 * (1 + torch.tanh(steepness * (lengths - 0.5 * (low + high))))
        return low + (lengths - low) * share


Transform = Callable[[Tensor, Tensor], Tensor]
TRANSFORMS: dict[str, Callable[[tuple[int, ...]], Transform] | None] = {
    "None": None,
    "Agnesi": AgnesiTransform,
    "Soft": SoftTransform,
}


class PairRepulsion:
    """The ZBL energy of every atom; half of a pair's goes to each of its two atoms."""

    def __init__(self, atomic_numbers: tuple[int, ...], exponent: int) -> None:
        numbers = np.asarray(atomic_numbers, dtype=np.float64)
        powers = numbers ** ZBL["a_exp"]
        screening = ZBL["a_prefactor"] * _BOHR / (powers[:, None] + powers[None, :])
        self._per_screening = _SpeciesTable(1 / screening)
        self._charges = _SpeciesTable(_COULOMB * numbers[:, None] * numbers[None, :])
        self._reach = _SpeciesTable(_radii(atomic_numbers))
        self._exponent = exponent

    def __call__(
        self, lengths: Tensor, species: Tensor, ends: EdgeEnds, n_atoms: int, sums: Sums
    ) -> Tensor:
        """Energies [n_atoms], eV, of pairs [n_pairs] of these lengths and species.

        ``sums`` add over edges.
        """
        scaled = lengths * self._per_screening(species, lengths)
        screened = sum(
            (
                weight * torch.exp(-decay * scaled)
                for weight, decay in zip(ZBL_WEIGHTS, _ZBL_DECAYS, strict=True)
            ),
            start=torch.zeros_like(scaled),
        )
        reach = envelope(lengths / self._reach(species, lengths), self._exponent)
        of_pairs = 0.5 * self._charges(species, lengths) / lengths * screened * reach
        of_edges = of_pairs.index_select(0, ends.pair_of_edge)
        return sums(of_edges, ends.receiver_of_edge, n_atoms, ascending=True)
