"""Variants of mace-torch's models x import, export, MACECalculator, mace_eval_configs, LAMMPS.

Import and export compare energies, forces and stress on their own and refuse above 1e-10. Here the
tools of mace-torch run on the exported file, with neighbour lists of their own, and must give what
the original model gives.
"""

import sys

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import chemical_symbols

from mace_train.interop.export_model import export_model
from mace_train.interop.import_model import import_model
from mace_train.interop.mace_torch import double_precision, predictions_of
from mace_train.interop.probe_structures import graph_of
from mace_train.settings import ExportSettings, ImportSettings
from mace_train.settings.model import ATTENTION, NONLINEAR
from tests.interop.variants import CHANGES, HEADS, NUMBERS, SMALL, VARIANTS
from tests.model.mace_torch import mace_torch_model

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # mace-torch and e3nn warn a lot
    pytest.mark.usefixtures("mace_here"),
]

NOT_COMPILED = {  # blocks that mace-torch 0.3.16 cannot compile for LAMMPS, be they ours or its own
    NONLINEAR: r"Unknown type name 'o3\.Irreps'|irreps_in_getter",  # first and later in a process
    ATTENTION: r"Return value was annotated as having type Tuple\[Tensor, NoneType\]",
}


def structures(symbols):
    """A molecule and a crystal that are not among those of the parity check."""
    random = np.random.RandomState(11)
    names = [symbols[i % len(symbols)] for i in range(5)]
    grid = np.array([[0, 0, 0], [1.1, 0.1, 0], [0, 1.3, 0.2], [1.2, 1.1, 0.9], [0.2, 0.3, 1.4]])
    molecule = Atoms(names, positions=grid + 0.1 * random.standard_normal(grid.shape))
    cell = 3.1 * (np.eye(3) + 0.08 * random.standard_normal((3, 3)))
    crystal = Atoms(names[:3], scaled_positions=0.9 * random.rand(3, 3), cell=cell, pbc=True)
    return [molecule, crystal]


@pytest.mark.parametrize("name", VARIANTS)
def test_tools_of_mace_torch_take_the_export(name, tmp_path, monkeypatch):
    arguments, settings, change = VARIANTS[name]
    theirs = mace_torch_model(NUMBERS, **{**SMALL, **arguments})
    if change is not None:
        CHANGES[change](theirs)
    original, exported = tmp_path / "original.model", tmp_path / "exported.model"
    torch.save(theirs, original)
    model = import_model(
        ImportSettings(model_file=str(original), output=str(tmp_path / "run"), **settings)
    )
    export_model(
        ExportSettings(
            checkpoint=str(tmp_path / "run"), output=str(exported), default_dtype="float64"
        )
    )
    heads = model.data.head_names
    symbols = [chemical_symbols[z] for z in model.data.atomic_numbers]
    frames = structures(symbols)
    graph = graph_of(frames, list(NUMBERS), 4.0)
    place = HEADS["heads"].index(heads[-1]) if "heads" in arguments else 0
    if "heads" not in vars(theirs):
        theirs.heads = ["Default"]  # or mace-torch itself cannot run it
    expected = predictions_of(theirs, graph, place)
    tolerance = 1e-5 if change == "round" else 1e-10
    with double_precision():  # MACECalculator does not set it while the repulsion is computed
        check_calculator(exported, heads[-1], frames, expected, tolerance)
    check_eval_configs(exported, heads[-1], frames, expected, tolerance, tmp_path, monkeypatch)
    check_lammps(exported, heads[-1], model, monkeypatch)


def check_calculator(path, head, frames, expected, tolerance):
    from mace.calculators import MACECalculator

    calculator = MACECalculator(
        model_paths=str(path), device="cpu", default_dtype="float64", head=head
    )
    first = 0
    for i, atoms in enumerate(frames):
        atoms = atoms.copy()
        atoms.calc = calculator
        last = first + len(atoms)
        assert_close(atoms.get_potential_energy(), expected["energy"][i], tolerance)
        assert_close(atoms.get_forces(), expected["forces"][first:last], tolerance)
        if atoms.pbc.all():
            assert_close(atoms.get_stress(voigt=False), expected["stress"][i], tolerance)
        first = last


def check_eval_configs(path, head, frames, expected, tolerance, folder, monkeypatch):
    from mace.cli import eval_configs

    ase.io.write(folder / "in.xyz", frames)
    words = ["--configs", folder / "in.xyz", "--model", path, "--output", folder / "out.xyz"]
    words += ["--head", head, "--compute_stress"]
    monkeypatch.setattr(sys, "argv", ["mace_eval_configs", *map(str, words)])
    eval_configs.main()
    written = ase.io.read(folder / "out.xyz", ":")
    energies = [atoms.info["MACE_energy"] for atoms in written]
    forces = np.concatenate([atoms.arrays["MACE_forces"] for atoms in written])
    assert_close(energies, expected["energy"], max(tolerance, 1e-8))  # digits of the file
    assert_close(forces, expected["forces"], max(tolerance, 1e-7))
    stress = np.asarray(written[1].info["MACE_stress"]).reshape(3, 3)
    assert_close(stress, expected["stress"][1], max(tolerance, 1e-7))


def check_lammps(path, head, model, monkeypatch):
    from mace.cli import create_lammps_model

    monkeypatch.setattr(sys, "argv", ["mace_create_lammps_model", str(path), "--head", head])
    for block, words in NOT_COMPILED.items():
        if block in model.settings.blocks():
            with pytest.raises(RuntimeError, match=words):
                create_lammps_model.main()
            return
    create_lammps_model.main()
    loaded = torch.jit.load(f"{path}-lammps.pt")
    assert loaded.atomic_numbers.tolist() == list(model.data.atomic_numbers)
    assert float(loaded.r_max) == model.data.r_max


def assert_close(found, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    found = torch.as_tensor(np.asarray(found), dtype=torch.float64)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("reduced", [False, True])
def test_cuequivariance(reduced, tmp_path):
    """Its reduced couplings are imported, and it takes the export; where it is installed."""
    pytest.importorskip("cuequivariance_torch")
    from mace.cli.convert_e3nn_cueq import run

    theirs = mace_torch_model(NUMBERS, **SMALL, use_reduced_cg=reduced)
    torch.save(theirs, tmp_path / "original.model")
    import_model(
        ImportSettings(model_file=str(tmp_path / "original.model"), output=str(tmp_path / "run"))
    )
    export_model(
        ExportSettings(checkpoint=str(tmp_path / "run"), output=str(tmp_path / "exported.model"))
    )
    converted = run(str(tmp_path / "exported.model"), device="cpu")
    graph = graph_of(structures(["H", "C", "O"]), list(NUMBERS), 4.0)
    expected, found = (predictions_of(model, graph) for model in (theirs, converted))
    for name in ("energy", "forces", "stress"):
        assert_close(found[name], expected[name], 1e-10)
