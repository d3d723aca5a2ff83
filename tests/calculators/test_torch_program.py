"""Exported programs against the calculator, for structures of all sizes."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mace_train.calculators import MACETrainCalculator
from mace_train.calculators.torch_program import export_program
from mace_train.data.neighbors import neighbor_list
from mace_train.errors import InputError
from tests.model.systems import mixed, model_of, nonlinear_model_of, rattled

ELEMENTS = (1, 8, 13)
pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's own, while it compiles


def structures():
    return [
        rattled(bulk("Al", cubic=True), 1),
        mixed(ELEMENTS),
        rattled(bulk("Al"), 2),
        molecule("H2O"),
        Atoms("OH", positions=[[0, 0, 0], [0, 0, 20.0]]),
        Atoms("O"),
    ]


def inputs_of(atoms, r_max, seed=0):
    """Edges in an order of no meaning."""
    edges = neighbor_list(atoms.positions, np.array(atoms.cell), atoms.pbc, r_max)
    order = np.random.default_rng(seed).permutation(edges.n_edges)
    arrays = (
        atoms.positions,
        np.array(atoms.cell),
        atoms.numbers.astype(np.int64),
        edges.senders[order],
        edges.receivers[order],
        edges.shifts[order],
    )
    return [torch.tensor(array) for array in arrays]


def check(program, model, tolerance=1e-10):
    calc = MACETrainCalculator(model)
    for atoms in structures():
        inputs = inputs_of(atoms, model.data.r_max)
        energy, node_energy, forces, virials = (t.detach() for t in program(*inputs))
        assert energy.item() == pytest.approx(calc.get_potential_energy(atoms), abs=tolerance)
        expected = calc.get_potential_energies(atoms)
        np.testing.assert_allclose(node_energy.numpy(), expected, atol=tolerance)
        np.testing.assert_allclose(forces.numpy(), calc.get_forces(atoms), atol=tolerance)
        if atoms.pbc.all():
            stress = -virials.numpy() / atoms.get_volume()
            expected = calc.get_property("stress", atoms)
            found = stress[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
            np.testing.assert_allclose(found, expected, atol=tolerance)


def test_exported_graph(exported):
    extra = {"mace_train.json": ""}
    program = torch.export.load(exported.path, extra_files=extra)
    description = json.loads(extra["mace_train.json"])
    assert json.loads(exported.path.with_name("model.pt2.json").read_text()) == description
    assert (description["r_max"], description["atomic_numbers"]) == (4.0, list(ELEMENTS))
    assert len(description["inputs"]) == len(inputs_of(molecule("H2O"), 4.0))
    assert f"wrote {exported.path} for H, O, Al (r_max 4.0 Å, float64 inside)" in exported.said
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not [name for name in operators if "mace_train" in name]
    check(program.module(), exported.model)
    # an element that the model does not know
    energy, node_energy, *_ = program.module()(*inputs_of(molecule("CH3OH"), 4.0))
    assert bool(energy.isnan())
    assert node_energy.isnan().tolist() == [True, False, False, False, False, False]


def test_exported_graph_of_nonlinear_interactions(tmp_path):
    model = nonlinear_model_of(ELEMENTS, correlation=2, max_ell=1)
    export_program(model, tmp_path / "model.pt2", "export")
    check(torch.export.load(tmp_path / "model.pt2").module(), model)


@pytest.mark.slow
def test_compiled_library(tmp_path):
    model = model_of(
        ELEMENTS, correlation=1, max_ell=1, max_L=0, num_interactions=1, radial_MLP=[4]
    )
    path = tmp_path / "model.pt2"
    quick = {  # five times as fast to compile; the program is the same
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
        "cpp_cache_precompile_headers": False,
    }
    with torch._inductor.config.patch(quick):
        export_program(model, path, "aoti")
    program = torch._inductor.aoti_load_package(str(path))
    assert program.get_metadata()["r_max"] == "4.0"
    check(program, model)


@pytest.mark.parametrize(
    ("path", "form", "words"),
    [("model.pt", "aoti", "are files .pt2"), ("model.pt2", "onnx", "choices are: aoti, export")],
)
def test_wrong_settings(path, form, words, tmp_path):
    with pytest.raises(InputError, match=words):
        export_program(model_of(ELEMENTS), tmp_path / path, form)
