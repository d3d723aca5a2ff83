"""What a rotation, a reflection, a permutation of the atoms and a translation do to results.

``assert_equivariant`` compares a function of moved inputs with the moved outputs of the function;
``assert_model_equivariant`` does so for the energy, forces and stress of a structure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mace_train.model.spherical_harmonics import SphericalHarmonics

Outputs = Mapping[str, Any]  # arrays or tensors by name
MAX_DEGREE = 4


def rotation(seed: int) -> np.ndarray:
    """A random proper rotation [3, 3], acting on columns."""
    matrix, _ = np.linalg.qr(np.random.RandomState(seed).standard_normal((3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def degree_matrices(rotate: np.ndarray, l_max: int) -> list[np.ndarray]:
    """D with Y_l(R v) = D_l Y_l(v), from the values at many points."""
    points = np.random.RandomState(0).standard_normal((100, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    harmonics = SphericalHarmonics(l_max)
    before = harmonics(torch.as_tensor(points))
    after = harmonics(torch.as_tensor(points @ rotate.T))
    return [
        np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0].T
        for a, b in zip(before, after, strict=True)
    ]


@dataclass(frozen=True)
class Motion:
    """``rotate`` [3, 3], perhaps with a reflection; the new ``order`` of the atoms; a ``shift``."""

    rotate: np.ndarray
    order: np.ndarray
    shift: np.ndarray

    @cached_property
    def of_degrees(self) -> list[np.ndarray]:
        """D_l for every degree up to MAX_DEGREE, for parities (-1)^l."""
        return degree_matrices(self.rotate, MAX_DEGREE)

    def features(self, values: torch.Tensor, degrees: Sequence[int]) -> torch.Tensor:
        """Rotated features [n, rows, ...], whose rows are the components of ``degrees``."""
        sizes = [2 * degree + 1 for degree in degrees]
        parts = [
            torch.einsum("ij,nj...->ni...", torch.as_tensor(self.of_degrees[degree]), part)
            for degree, part in zip(degrees, values.split(sizes, dim=1), strict=True)
        ]
        return torch.cat(parts, dim=1)

    def atoms(self, atoms: Atoms) -> Atoms:
        """The moved structure."""
        moved = atoms[self.order]
        moved.positions = moved.positions @ self.rotate.T + self.shift
        moved.cell[:] = moved.cell[:] @ self.rotate.T
        return moved

    def results(self, results: Outputs) -> dict[str, Any]:
        """The results of the moved structure: energy, node_energy [n], forces [n, 3], stress."""
        R = self.rotate
        moves: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "energy": lambda energy: energy,
            "node_energy": lambda energies: energies[self.order],
            "forces": lambda forces: forces[self.order] @ R.T,
            "stress": lambda stress: R @ stress @ R.T,
        }
        return {name: moves[name](np.asarray(value)) for name, value in results.items()}


def motions(n_atoms: int, seed: int = 0, n: int = 2) -> list[Motion]:
    """Random motions; every second one has a reflection."""
    random = np.random.RandomState(seed)
    return [
        Motion(
            rotation(seed + i) * (-1 if i % 2 else 1),
            random.permutation(n_atoms),
            random.uniform(-20.0, 20.0, 3),
        )
        for i in range(n)
    ]


def assert_equivariant(
    function: Callable[..., Outputs],
    inputs: Sequence[Any],
    move_inputs: Callable[..., Sequence[Any]],
    move_outputs: Callable[[Motion, Outputs], Outputs],
    *,
    n_atoms: int = 1,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> None:
    """``function`` of ``move_inputs(motion, *inputs)`` is ``move_outputs(motion, outputs)``.

    Some output has to change with the motion; else the comparison would say nothing.
    """
    before = function(*inputs)
    for motion in motions(n_atoms, seed):
        found = function(*move_inputs(motion, *inputs))
        expected = move_outputs(motion, before)
        assert found.keys() == expected.keys() == before.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                _tensor(found[name]),
                _tensor(value),
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        changes = [_distance(value, before[name]) for name, value in expected.items()]
        assert max(changes) > 1000 * tolerance, "no output depends on the motion"


def _tensor(value: Any) -> torch.Tensor:
    return value.detach() if torch.is_tensor(value) else torch.as_tensor(np.asarray(value))


def _distance(one: Any, other: Any) -> float:
    difference = _tensor(one) - _tensor(other)
    return float(difference.abs().max()) if difference.numel() else 0.0


def assert_model_equivariant(
    predict: Callable[[Atoms], Outputs], atoms: Atoms, *, tolerance: float = 1e-9, seed: int = 0
) -> None:
    """Energy, forces and stress of ``predict`` move with the structure (``Motion.results``)."""
    assert_equivariant(
        predict,
        [atoms],
        lambda motion, atoms: [motion.atoms(atoms)],
        Motion.results,
        n_atoms=len(atoms),
        tolerance=tolerance,
        seed=seed,
    )
