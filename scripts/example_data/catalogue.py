"""The trajectories of the example data, by name: what is sampled, how often, and in which file.

Train and test share no trajectory. Eight molecules and four solutes appear in the test file only;
water clusters and crystals there are other sizes, packings and strains than in the train file.
The G2 set: Curtiss et al., J. Chem. Phys. 106, 1063 (1997), as tabulated in ASE.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .dynamics import FREE_ATOMS, Trajectory
from .geometries import cluster, crystals, free_atom, g2_molecule, strained_crystal

# Closed shells of the G2 set; those held out appear in the test file only.
MOLECULES = """
    H2 N2 CO H2O CO2 HCN N2O C2H2 NH3 H2CO CH4 H2O2 HCOOH H2CCO CH3OH C2H4 N2H4 CH3CN OCHCHO
    CH2OCH2 H3CNH2 CH3NO2 H2CCHCN C3H4_D2d C3H4_C3v C3H4_C2v C2H6 CH3COOH CH2NHCH2 CH3OCH3
    CH3CH2OH C4H4O C3H6_D3h C3H6_Cs CH3COCH3 CH3CH2NH2 C4H4NH butadiene 2-butyne bicyclobutane
    methylenecyclopropane C3H8 C5H5N C6H6 C2H6CHOH C5H8 C3H9N trans-butane isobutane
"""
HELD_OUT = """
    CH3CHO HCOOCH3 CH3CONH2 C2H6NH cyclobutene cyclobutane isobutene CH3CH2OCH3
"""
SOLUTES = """
    CH4 NH3 H2CO CO2 CH3OH HCOOH HCN H3CNH2 CH3CN CH3OCH3 CH3CH2OH CH3COOH CH3COCH3 C2H6
    CH3CH2NH2 C4H4O C5H5N C6H6 C3H8 N2H4 H2O2 C2H4
"""
HELD_OUT_SOLUTES = "CH3CHO CH3CONH2 C2H6NH cyclobutane"


def molecule_trajectories() -> Iterator[Trajectory]:
    """Yield free atoms and molecules: three rattles and five hot frames each."""
    for symbol in FREE_ATOMS:
        start = functools.partial(free_atom, symbol=symbol)
        yield Trajectory(f"atom-{symbol}", "IsolatedAtom", "train", start, rattles=(0.0,))
    for i, name in enumerate((MOLECULES + HELD_OUT).split()):
        held_out = name in HELD_OUT.split()
        yield Trajectory(
            name=f"molecule-{name}",
            config_type="molecule",
            split="test" if held_out else "train",
            start=functools.partial(g2_molecule, name=name),
            rattles=(0.03,) if held_out else (0.02, 0.035, 0.05),
            frames=3 if held_out else 5,
            settle=16,
            stride=12,
            kelvin=(300.0, 450.0, 600.0)[i % 3],
        )


def water_trajectories() -> Iterator[Trajectory]:
    """Yield water clusters of 1 to 40 molecules and solutes with 2 to 12 waters."""
    sizes = {"train": [*range(1, 11), *range(1, 11), 12, 14, 16, 18, 20, 24, 28, 32, 36, 40]}
    sizes["test"] = [3, 6, 11, 15, 22, 34]
    for split, counts in sizes.items():
        for i, n in enumerate(counts):
            yield Trajectory(
                name=f"water-{split}-{i}-{n}",
                config_type="water",
                split=split,
                start=functools.partial(cluster, solute="H2O", n_water=n - 1),
                frames=3 if n > 20 or split == "test" else 6,
                settle=20,
                stride=8,
                kelvin=(250.0, 350.0)[i % 2],
                cost=(3.0 * n) ** 2,
            )
    for split, solutes in (("train", SOLUTES), ("test", HELD_OUT_SOLUTES)):
        for i, name in enumerate(solutes.split()):
            n = 2 + 7 * i % 11
            yield Trajectory(
                name=f"solvated-{name}-{n}",
                config_type="solvated",
                split=split,
                start=functools.partial(cluster, solute=name, n_water=n),
                frames=4 if split == "train" else 3,
                settle=24,
                stride=10,
                cost=(3.0 * n + 10) ** 2,
            )


def crystal_trajectories() -> Iterator[Trajectory]:
    """Yield strained crystals: small cells often, the supercells of 64 to 96 atoms seldom."""
    for name, atoms in crystals().items():
        large = len(atoms) > 40
        for split, count in (("train", 2 if large else 4), ("test", 1)):
            for i in range(count):
                yield Trajectory(
                    name=f"crystal-{name}-{split}-{i}",
                    config_type="crystal",
                    split=split,
                    start=functools.partial(strained_crystal, name=name),
                    rattles=(0.025,) if large else (0.015, 0.03)[: 2 if split == "train" else 1],
                    frames=1 if large or split == "test" else 3,
                    settle=10,
                    stride=8,
                    kelvin=(200.0, 300.0, 400.0, 300.0)[i],
                    cost=4.0 * len(atoms) ** 2,
                )


@functools.cache
def trajectories() -> dict[str, Trajectory]:
    """Return all trajectories by name, in the order of the files."""
    every = [*molecule_trajectories(), *water_trajectories(), *crystal_trajectories()]
    return {trajectory.name: trajectory for trajectory in every}
