"""Energy conservation: the drift of NVE dynamics of trained models, far below what would matter.

Two small models are trained by `mace-train train` in float64: on the water clusters and ices of the
example data with pairs of molecules pressed together (without these a box found O-O distances that
no force had been learned for, and heated), and on the molecule 3BPA. With them a periodic box of
water and 3BPA are relaxed, brought to 300 K (Langevin) and run at constant energy (velocity
Verlet); a line is fitted to the total energy. Passes if its slope is below 0.1 meV/atom/ps in size
for both.

    python scripts/bench/md_drift.py --data FOLDER --json drift.json --plot drift.png

FOLDER holds the 3BPA files train_300K.extxyz.gz and iso_atoms.extxyz.gz (arXiv 2205.06643) with
REF_energy and REF_forces. Needs the extra "examples": tblite labels the pairs, as it did the
example data. What is finished in --work is used again, so an interrupted run goes on.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from example_data.dynamics import label

from mace_train._paths import EXAMPLE_DATA
from mace_train.calculators.drift import draw_energies, energy_drift

LIMIT = 0.1  # meV/atom/ps
CLOSE_PAIRS = 80
PART = 2.5  # ps that are run at a time; what is finished is not run again
MOLECULES_PER_SIDE = 3
VOLUME_OF_A_MOLECULE = 29.9  # Å^3, liquid water at 300 K
MODEL = [
    "model=tiny",
    "model.pair_repulsion=true",
    "default_dtype=float64",
    "batching.batch_size=4",
    "scheduler=cosine",
]


def main() -> int:
    """Train, run, print and plot; 0 if both drifts are below the limit."""
    arguments = _arguments()
    systems = {"water box": _water, "3BPA": _bpa}
    results = {
        name: _drift(name, *prepare(arguments), arguments) for name, prepare in systems.items()
    }
    rows = []
    for name, result in results.items():
        drift = abs(result["drift_meV_per_atom_per_ps"])
        ratio = LIMIT / max(drift, 1e-9)
        rows.append({"name": name, "ours": drift, "peer": LIMIT, "ratio": ratio, "at_least": 1.0})
        print(
            f"{name}: {result['n_atoms']} atoms, {arguments.picoseconds} ps of NVE at "
            f"{result['mean_temperature_K']:.0f} K in {result['seconds']:.0f} s: drift "
            f"{result['drift_meV_per_atom_per_ps']:+.4f} meV/atom/ps (limit {LIMIT}), fluctuation "
            f"{result['fluctuation_meV_per_atom']:.4f} meV/atom",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        series = {name: result["records"] for name, result in results.items()}
        n_atoms = {name: result["n_atoms"] for name, result in results.items()}
        draw_energies(series, n_atoms, arguments.plot)
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the 3BPA files")
    parser.add_argument("--work", type=Path, default=Path("runs/md_drift"))
    parser.add_argument("--epochs", type=int, default=60, help="of water; 3BPA, more data, half")
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--timestep-fs", type=float, default=0.5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="write the energies here (PNG)")
    return parser.parse_args()


def _water(arguments: argparse.Namespace) -> tuple[list[Atoms], Atoms]:
    """Structures of water to train on, and a box at the density of the liquid."""
    structures = [a for a in read(EXAMPLE_DATA / "train.extxyz.gz", ":") if _is_water(a)]
    random = np.random.default_rng(0)
    structures += [label(_close_pair(random)) for _ in range(CLOSE_PAIRS)]
    side = VOLUME_OF_A_MOLECULE ** (1 / 3)
    box = Atoms(cell=3 * [MOLECULES_PER_SIDE * side], pbc=True)
    for place in np.ndindex(3 * (MOLECULES_PER_SIDE,)):
        water = molecule("H2O")
        water.euler_rotate(*random.uniform(0, 360, 3), center="COM")
        water.translate(side * (np.array(place) + 0.5) - water.get_center_of_mass())
        box += water
    return structures, box


def _is_water(atoms: Atoms) -> bool:
    """Isolated H or O, or two H for each O."""
    n_hydrogen, n_oxygen = (atoms.numbers == 1).sum(), (atoms.numbers == 8).sum()
    is_alone = len(atoms) == 1
    return n_hydrogen + n_oxygen == len(atoms) and bool(is_alone or n_hydrogen == 2 * n_oxygen)


def _close_pair(random: np.random.Generator) -> Atoms:
    """Two molecules whose O are nearer than in any liquid, and all else 1.2 Å or more apart."""
    while True:
        first, second = molecule("H2O"), molecule("H2O")
        for water in (first, second):
            water.euler_rotate(*random.uniform(0, 360, 3))
            water.positions -= water.positions[0]  # O
        second.positions[:, 0] += random.uniform(1.4, 2.5)
        pair = first + second
        between = pair.get_all_distances()[:3, 3:].flatten()[1:]
        if between.min() > 1.2:
            pair.rattle(0.03, rng=random)
            return pair


def _bpa(arguments: argparse.Namespace) -> tuple[list[Atoms], Atoms]:
    """The set at 300 K with isolated atoms, and its first molecule."""
    molecules = read(arguments.data / "train_300K.extxyz.gz", ":")
    isolated = read(arguments.data / "iso_atoms.extxyz.gz", ":")
    for atoms in isolated:
        atoms.info["config_type"] = "IsolatedAtom"
    start = molecules[0].copy()
    start.calc = None
    return isolated + molecules, start


def _drift(
    name: str, structures: list[Atoms], start: Atoms, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Results of `mace-train md`; every part is done once."""
    work = arguments.work / name.replace(" ", "_")
    work.mkdir(parents=True, exist_ok=True)
    run, relaxed, warm = (work / part for part in ("run", "relaxed", "warm"))
    if not (work / "prepared" / "statistics.json").exists():
        write(work / "train.xyz", structures, format="extxyz")
        files = [f"data.train_file={work / 'train.xyz'}", f"output={work / 'prepared'}"]
        _mace_train("preprocess", "r_max=4.5", "data.valid_fraction=0.1", *files)
    if not (run / "done").exists():
        n_epochs = arguments.epochs if start.pbc.any() else math.ceil(arguments.epochs / 2)
        epochs = f"max_num_epochs={n_epochs}"
        where = [f"data_dir={work / 'prepared'}", f"output={run}", "restart_latest=true"]
        _mace_train("train", *MODEL, epochs, "cluster=cpu", *where)
        (run / "done").touch()
    model = [f"checkpoint={run}", "device=cpu"]
    if not (relaxed / "relax.json").exists():
        write(work / "start.xyz", start, format="extxyz")
        limits = ["fmax=0.3", "max_steps=300"]
        _mace_train(
            "relax", *model, *limits, f"structure={work / 'start.xyz'}", f"output={relaxed}"
        )
    if not (warm / "md.json").exists():
        steps = max(1, round(min(1.0, arguments.picoseconds) * 1000 / arguments.timestep_fs))
        settings = ["ensemble=nvt", "friction_per_fs=0.02", f"steps={steps}", f"output={warm}"]
        _md(model, arguments, f"structure={relaxed / 'relaxed.extxyz'}", *settings)
    parts = []
    start_of_part = warm
    for number in range(math.ceil(arguments.picoseconds / PART)):
        part = work / f"nve-{number}"
        if not (part / "md.json").exists():
            length = min(PART, arguments.picoseconds - number * PART)
            steps = max(1, round(length * 1000 / arguments.timestep_fs))
            settings = ["ensemble=nve", f"steps={steps}", f"output={part}"]
            if number:
                settings.append("temperature_K=null")  # goes on with the velocities
            _md(model, arguments, f"structure={start_of_part / 'trajectory.traj'}", *settings)
        parts.append(json.loads((part / "md.json").read_text()))
        start_of_part = part
    return _joined(parts)


def _md(model: list[str], arguments: argparse.Namespace, *settings: str) -> None:
    timestep = f"timestep_fs={arguments.timestep_fs}"
    _mace_train("md", *model, timestep, "temperature_K=300", "trajectory=traj", *settings)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts as one run, with the fit over all of it."""
    records: dict[str, list[float]] = {name: [] for name in parts[0]["records"]}
    begin = 0.0
    for part in parts:
        skip = 1 if begin else 0  # the last of a part is the first of the next
        for name, values in part["records"].items():
            shifted = [value + begin for value in values] if name == "time_ps" else values
            records[name] += shifted[skip:]
        begin = records["time_ps"][-1]
    n_atoms = parts[0]["n_atoms"]
    return {
        "n_atoms": n_atoms,
        "seconds": sum(part["seconds"] for part in parts),
        "mean_temperature_K": float(np.mean(records["temperature_K"])),
        **energy_drift(records["time_ps"], records["total_energy_eV"], n_atoms),
        "records": records,
    }


def _mace_train(*words: str) -> None:
    """Run one command; its messages go to the terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([sys.executable, "-m", "mace_train", *words], check=True, env=environment)


if __name__ == "__main__":
    sys.exit(main())
