"""Descriptors of the calculator are those of mace-torch, and turn as their irreps say."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mace_train.calculators import MACETrainCalculator
from mace_train.errors import InputError
from mace_train.interop.header import header_of
from mace_train.interop.state_dict import from_mace_torch
from mace_train.model.node_features import node_descriptors
from tests.calculators.systems import ELEMENTS, R_MAX, STRUCTURES
from tests.interop.variants import NUMBERS, SMALL, VARIANTS
from tests.model.mace_torch import import_mace, mace_torch_model
from tests.model.reference_file import read_reference
from tests.model.systems import graph_of, mixed, model_of

GOLDEN = Path(__file__).with_name("descriptors.npz")
CHOICES = {
    "all": {"invariants_only": False},
    "invariant": {},
    "first": {"invariants_only": False, "num_layers": 1},
}
MODELS = (
    *("density_heads", "nonlinear_heads", "attention", "last_layer_irreps"),
    *("last_readout_only", "correlation_of_layers"),
)


def golden_models() -> list[str]:
    with np.load(GOLDEN) as arrays:
        return sorted({name.split("/")[0] for name in arrays})


def assert_same(found, expected):
    assert found.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", golden_models())
def test_they_are_those_that_mace_torch_gave_once(name, kernels):
    reference = read_reference(name)
    model = from_mace_torch(reference.tensors, reference.header)
    calculator = MACETrainCalculator(model, kernels=kernels)
    with np.load(GOLDEN) as arrays:
        for i, atoms in enumerate(reference.structures):
            for choice, words in CHOICES.items():
                expected = arrays[f"{name}/{i}/{choice}"]
                assert_same(calculator.get_descriptors(atoms, **words), expected)


@pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot
@pytest.mark.parametrize(
    "changes",
    [{"max_L": 2}, {"num_interactions": 3}, {"num_interactions": 1}, {"max_L": 0, "channels": 6}],
    ids=str,
)
def test_they_agree_with_mace_torch(changes):
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    from mace.calculators import MACECalculator

    theirs = mace_torch_model(ELEMENTS, **changes)
    ours = MACETrainCalculator(from_mace_torch(theirs.state_dict(), header_of(theirs)))
    theirs = MACECalculator(models=[theirs], device="cpu", default_dtype="float64")
    n_layers = changes.get("num_interactions", 2)
    for atoms in (STRUCTURES["molecule"](), STRUCTURES["crystal"]()):
        for invariants_only in (True, False):
            for num_layers in (-1, *range(1, n_layers + 1)):
                words = {"invariants_only": invariants_only, "num_layers": num_layers}
                expected = theirs.get_descriptors(atoms, **words)
                assert_same(ours.get_descriptors(atoms, **words), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_agrees_with_mace_torch(name):
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    from mace.calculators import MACECalculator

    theirs = mace_torch_model(NUMBERS, **{**SMALL, **VARIANTS[name][0]})
    head = theirs.heads[-1]
    ours = MACETrainCalculator(from_mace_torch(theirs.state_dict(), header_of(theirs)), head=head)
    theirs = MACECalculator(models=[theirs], device="cpu", default_dtype="float64", head=head)
    for words in ({}, {"invariants_only": False}, {"invariants_only": False, "num_layers": 1}):
        atoms = mixed(NUMBERS)
        found, expected = (c.get_descriptors(atoms, **words) for c in (ours, theirs))
        if name == "last_layer_irreps" and words == {"invariants_only": False}:
            assert found.shape[1] == 2 * 4 * SMALL["channels"]  # theirs lack vectors of the last
            found = found[:, : expected.shape[1]]
        assert_same(found, expected)


def test_columns_turn_as_the_irreps_say():
    """Invariant columns stay, vectors turn as positions do."""
    atoms = STRUCTURES["molecule"]()
    graph_words = (R_MAX, ELEMENTS)
    model = model_of(ELEMENTS)
    found = node_descriptors(model, graph_of([atoms], *graph_words), invariants_only=False)
    assert found.irreps == ("4x0e+4x1o", "4x0e")
    turned = atoms.copy()
    turned.rotate(71.0, (1, 2, 3))
    rotation = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    again = node_descriptors(model, graph_of([turned], *graph_words), invariants_only=False)
    before, after = found.values.numpy(), again.values.numpy()
    np.testing.assert_allclose(after[:, [*range(4), *range(16, 20)]],
                               before[:, [*range(4), *range(16, 20)]], atol=1e-12)  # fmt: skip
    vectors, vectors_after = (x[:, 4:16].reshape(-1, 3) for x in (before, after))
    assert np.abs(vectors).max() > 1e-3
    np.testing.assert_allclose(vectors_after, vectors @ rotation, atol=1e-12)


def test_a_batch_gives_what_structures_give_alone():
    structures = [STRUCTURES["molecule"](), STRUCTURES["crystal"](), molecule("H2O")]
    model = model_of(ELEMENTS, heads=("pbe", "scan"))
    batch = node_descriptors(model, graph_of(structures, R_MAX, ELEMENTS)).values.numpy()
    alone = MACETrainCalculator(model, head="scan")
    each = [alone.get_descriptors(atoms) for atoms in structures]
    np.testing.assert_allclose(batch, np.concatenate(each), atol=1e-13)
    assert batch.shape[1] == 2 * 4


def test_a_committee_gives_a_list_and_the_last_structure_is_remembered():
    atoms = STRUCTURES["molecule"]()
    models = [model_of(ELEMENTS, seed=seed) for seed in (0, 1)]
    single = [MACETrainCalculator(model) for model in models]
    both = MACETrainCalculator(models)
    atoms.calc = both
    atoms.get_potential_energy()
    found = both.get_descriptors()
    assert isinstance(found, list)
    for descriptors, calculator in zip(found, single, strict=True):
        np.testing.assert_array_equal(descriptors, calculator.get_descriptors(atoms))
    assert single[0].get_descriptors(atoms).dtype == np.float64
    in_float32 = MACETrainCalculator(models[0], default_dtype="float32").get_descriptors(atoms)
    assert in_float32.dtype == np.float32
    np.testing.assert_allclose(in_float32, found[0], atol=1e-4)


def test_nothing_stays_on_the_model():
    calculator = MACETrainCalculator(model_of(ELEMENTS))
    calculator.get_descriptors(molecule("H2O"))
    assert not any(product._forward_hooks for product in calculator.models[0].products)
    with pytest.raises(InputError, match=r"C \(6\)"):
        calculator.get_descriptors(molecule("CH4"))
    assert not any(product._forward_hooks for product in calculator.models[0].products)


def test_an_atom_alone_has_descriptors_of_its_element():
    found = MACETrainCalculator(model_of(ELEMENTS)).get_descriptors(Atoms("O"))
    assert found.shape == (1, 8)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("num_layers", [0, 3, -2])
def test_layers_that_are_not_there(num_layers):
    calculator = MACETrainCalculator(model_of(ELEMENTS))
    words = f"num_layers={num_layers}: the model has 2; give 1 to 2, or -1 for all"
    with pytest.raises(InputError, match=words):
        calculator.get_descriptors(molecule("H2O"), num_layers=num_layers)


def test_without_atoms():
    with pytest.raises(InputError, match="no atoms"):
        MACETrainCalculator(model_of(ELEMENTS)).get_descriptors()
