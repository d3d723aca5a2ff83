"""Start geometries of the example data: free atoms, molecules, packed clusters, crystals.

Waters are packed one by one: of 300 random poses in a ball at the density of liquid water, those
that overlap are dropped and the one of lowest point-charge energy stays; O(300 n^2) for n waters.

xTB samples the Brillouin zone at Gamma only. A covalent crystal in a small cell would carry an
energy that no local model can describe (diamond: 1.1 eV/atom between its cells of 8 and 64 atoms).
Small cells are therefore molecular crystals; diamond and graphite come in 64 atoms.

Random rotations: Shoemake, Graphics Gems III, 124 (1992).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.lattice.hexagonal import Graphite
from ase.spacegroup import crystal
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def free_atom(rng: np.random.Generator, symbol: str) -> Atoms:
    """Return one free atom at the origin."""
    return Atoms(symbol, positions=np.zeros((1, 3)))


def g2_molecule(rng: np.random.Generator, name: str) -> Atoms:
    """Return one molecule of the G2 set at its tabulated geometry."""
    atoms = molecule(name)
    return Atoms(atoms.symbols, atoms.positions)


def molecular_crystal(
    symbols: str, basis: Sequence[Sequence[float]], spacegroup: int, lengths: Sequence[float]
) -> Atoms:
    """Return the conventional cell of an orthogonal crystal; lengths in Å, basis fractional."""
    setting = 2 if spacegroup == 141 else 1
    cellpar = [*lengths, 90.0, 90.0, 90.0]
    return crystal(symbols, basis, spacegroup=spacegroup, setting=setting, cellpar=cellpar)


def rod_crystal(symbols: str, bond: float, length: float) -> Atoms:
    """Return one linear molecule along the diagonal of a simple cubic cell (hypothetical)."""
    places = np.arange(len(symbols)) - (len(symbols) - 1) / 2
    positions = bond * places[:, None] * np.ones(3) / np.sqrt(3)
    return Atoms(symbols, positions, cell=[length] * 3, pbc=True)


@functools.cache
def crystals() -> dict[str, Atoms]:
    """Return the reference crystals by name: published cells, experimental coordinates."""
    near, far, apex = (0.0569,) * 3, (0.1574,) * 3, (0.1067,) * 3
    ice_xi = [(0, 0.6547, 0.0631), (0.5, 0.8255, -0.0631)]
    ice_xi += [(0, 0.6636, 0.1963), (0, 0.7636, 0.0203), (0.6766, -0.2252, -0.0183)]
    urea = [(0, 0.5, 0.326), (0, 0.5, 0.5953), (0.1459, 0.6459, 0.1766)]
    urea += [(0.2575, 0.7575, 0.2827), (0.1441, 0.6441, -0.038)]
    ammonia = [(0.2107,) * 3, (0.3689, 0.2671, 0.1159)]
    graphite = Graphite("C", latticeconstant={"a": 2.461, "c": 6.7})
    small = {
        "N2-cubic": rod_crystal("NN", 1.10, 4.4),
        "CO2-cubic": rod_crystal("OCO", 1.16, 4.4),
        "N2-alpha": molecular_crystal("N", [(0.0556,) * 3], 205, [5.66] * 3),
        "CO2": molecular_crystal("CO", [(0, 0, 0), (0.1185,) * 3], 205, [5.62] * 3),
        "C2H2": molecular_crystal("CH", [near, far], 205, [6.1] * 3),
        "CH4": molecular_crystal("CH", [(0, 0, 0), apex], 216, [5.9] * 3),
        "NH3": molecular_crystal("NH", ammonia, 198, [5.13] * 3),
        "ice-VIII": molecular_crystal(
            "OH", [(0, 0.25, 0.1071), (0, 0.4157, 0.1935)], 141, [4.656, 4.656, 6.775]
        ),
        "ice-XI": molecular_crystal("OOHHH", ice_xi, 36, [4.465, 7.859, 7.292]),
        "urea": molecular_crystal("CONHH", urea, 113, [5.565, 5.565, 4.684]) * (1, 1, 2),
    }
    large = {
        "N2-alpha-64": small["N2-alpha"] * (2, 2, 2),
        "C2H2-64": small["C2H2"] * (2, 2, 1),
        "NH3-64": small["NH3"] * (2, 2, 1),
        "CH4-80": small["CH4"] * (2, 2, 1),
        "CO2-96": small["CO2"] * (2, 2, 2),
        "ice-XI-96": small["ice-XI"] * (2, 2, 1),
        "diamond-64": bulk("C", "diamond", 3.57, cubic=True) * (2, 2, 2),
        "graphite-64": graphite * (4, 4, 1),
    }
    return small | large


def strained_crystal(rng: np.random.Generator, name: str) -> Atoms:
    """Return a crystal under a random symmetric strain: up to 3 % in volume terms and shear."""
    scale = 0.5 if name.startswith(("diamond", "graphite")) else 1.0  # stiff: forces stay sane
    shear = rng.uniform(-0.02, 0.02, (3, 3))
    strain = rng.uniform(-0.02, 0.03) * np.eye(3) + (shear + shear.T) / 2
    atoms = crystals()[name].copy()
    cell = np.round(atoms.cell.array @ (np.eye(3) + scale * strain), 6)
    atoms.set_cell(cell, scale_atoms=True)
    return Atoms(atoms.symbols, atoms.positions, cell=cell, pbc=True)


def rotations(rng: np.random.Generator, count: int) -> Floats:
    """Return uniformly random rotation matrices [count, 3, 3] (from unit quaternions)."""
    q = rng.normal(size=(4, count))
    w, x, y, z = q / np.sqrt((q**2).sum(axis=0))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def place_water(rng: np.random.Generator, atoms: Atoms, charges: Floats, radius: float) -> Floats:
    """Return positions [3, 3] of one more water inside `radius`, the best of 300 random poses.

    A pose is allowed if heavy atoms are 2.5 Å and hydrogens 1.75 Å from every other molecule;
    the best one has the lowest Coulomb energy of point charges. `radius` grows until one fits.
    """
    water = molecule("H2O").positions - molecule("H2O").positions[0]
    own = np.array([-0.8, 0.4, 0.4])
    reach = np.where(atoms.numbers == 1, 1.75, 2.5)
    limits = np.minimum(np.array([2.5, 1.75, 1.75])[:, None], reach)  # [3, n_atoms]
    while True:
        centres = rng.uniform(-radius, radius, (300, 3))
        poses = np.einsum("pij,aj->pai", rotations(rng, 300), water) + centres[:, None]
        delta = poses[:, :, None] - atoms.positions  # [poses, 3, n_atoms, 3]
        distances = np.sqrt((delta**2).sum(axis=-1))
        allowed = ((distances > limits).all(axis=(1, 2))) & ((centres**2).sum(1) < radius**2)
        if allowed.any():
            energies = (own[:, None] * charges / distances).sum(axis=(1, 2))
            return poses[np.argmin(np.where(allowed, energies, np.inf))]
        radius *= 1.02


def cluster(rng: np.random.Generator, solute: str, n_water: int) -> Atoms:
    """Return `solute` at the origin and `n_water` waters around it, near 30 Å^3 per water."""
    atoms = molecule(solute)
    atoms = Atoms(atoms.symbols, atoms.positions - atoms.positions.mean(axis=0))
    own = np.array([-0.8, 0.4, 0.4])
    charges = own if solute == "H2O" else np.zeros(len(atoms))
    volume = 30.0 * n_water + 10.0 * len(atoms)
    for _ in range(n_water):
        positions = place_water(rng, atoms, charges, np.cbrt(0.75 * volume / np.pi))
        atoms += Atoms("OHH", positions)
        charges = np.concatenate([charges, own])
    return atoms
