"""Inputs beside the geometry: how they are read, what is refused, and what a model takes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mace_train.data.input_values import InputColumns, check_inputs, encoded, input_values
from mace_train.data.notes import Notes
from mace_train.data.raw_structure import RawStructure, Results
from mace_train.data.structure import structure_from_atoms
from mace_train.errors import InputError, InvalidStructureError
from mace_train.settings import DataSettings, ModelSettings
from mace_train.settings.inputs import (
    InputKey,
    ReadInput,
    as_read,
    input_keys,
    input_specs,
    model_input_keys,
)
from tests.charged import INPUTS, SPECS, charged
from tests.data.factories import KEYS

FILE_KEYS = input_keys({"total_charge": "charge", "temperature": "T"}, ["site"], None)


def read(atoms, keys=FILE_KEYS):
    notes = Notes()
    return input_values(atoms, keys, "a.xyz, structure 7", notes), notes


def test_values_of_structure_and_atoms():
    atoms = charged(8)
    values, notes = read(atoms)
    assert values.graph == {"total_charge": 1.0, "temperature": pytest.approx(0.8)}
    np.testing.assert_array_equal(values.atom["site"], [0, 1, 2])
    assert not notes.found
    structure = structure_from_atoms(atoms, KEYS, "a.xyz", inputs=FILE_KEYS)
    assert structure.inputs.graph == values.graph
    assert structure_from_atoms(atoms, KEYS, "a.xyz").inputs.graph == {}


@pytest.mark.parametrize(
    ("name", "default"), [("total_charge", 0.0), ("total_spin", 1.0), ("elec_temp", 0.0)]
)
def test_what_is_missing_has_the_default_of_mace_torch(name, default):
    values, notes = read(charged(0), input_keys([name], None, None))
    assert values.graph == {name: default}
    (note,) = notes.found.values()
    assert note.text() == (
        f"a.xyz, structure 7: no '{name}' (info) for the input {name}; taking its default, "
        f"{default:g}"
    )


def test_values_of_a_file_of_mace_torch():
    """Its HDF5 holds them beside the labels."""
    atoms = charged(4)
    raw = RawStructure(atoms.numbers, atoms.positions, np.zeros((3, 3)), atoms.pbc)
    raw.calc = Results({"total_charge": 2.0, "site": np.arange(5)})
    values, _ = read(raw, input_keys(["total_charge"], ["site"], None))
    assert values.graph == {"total_charge": 2.0}
    np.testing.assert_array_equal(values.atom["site"], np.arange(5))


@pytest.mark.parametrize("per", ["graph", "atom"])
def test_a_value_in_the_other_place_is_named(per):
    """And is an error where the setting of the command says so."""
    atoms = charged(0)
    if per == "atom":
        atoms.info["total_charge"] = 1
    else:
        atoms.arrays["total_charge"] = np.ones(len(atoms))
    here, there = ("atom (atoms.arrays)", "structure (atoms.info)")
    here, there = (here, there) if per == "atom" else (there, here)
    setting = "info_keys" if per == "atom" else "arrays_keys"
    words = (
        f"the input total_charge is read per {here}, but 'total_charge' is there per {there}; name "
        f"it in {setting}, with per: "
    )
    named = ["total_charge"]
    given = input_keys(named if per == "graph" else None, named if per == "atom" else None, None)
    with pytest.raises(InvalidStructureError, match=re.escape(words)) as caught:
        input_values(atoms, given, "a.xyz, structure 3", Notes())
    assert caught.value.kind == "place of an input"
    notes = Notes()
    of_model = InputKey("total_charge", ("q", "total_charge"), per, 0.0)
    input_values(atoms, [of_model], "a.xyz, structure 3", notes)
    assert words in str(notes.content())
    with pytest.raises(InvalidStructureError, match="has no default; the input total_charge is"):
        input_values(atoms, [replace(of_model, default=None)], "a.xyz", notes)


def test_keys_and_defaults_of_the_data_are_those_of_the_model():
    read = {"total_charge": ReadInput("q", 2.0), "temperature": ReadInput("temperature")}
    found = input_specs(as_read(SPECS, read))
    assert [(spec.key, spec.default) for spec in found[:2]] == [("q", 2.0), ("T", None)]
    again = input_specs(as_read({s.name: s.content() for s in found}, read, override=True))
    assert [(spec.key, spec.default) for spec in again[:2]] == [("q", 2.0), (None, None)]
    assert input_specs(as_read(SPECS, {})) == INPUTS


def test_other_defaults_are_those_of_the_settings():
    atoms = charged(4)
    del atoms.info["T"]
    with pytest.raises(InvalidStructureError, match=r"no 'T' .info. for the input temperature, wh"):
        read(atoms)
    keys = input_keys(
        {"temperature": "T"}, ["charge_of_atom"], {"temperature": 300, "charge_of_atom": 2}
    )
    values, _ = read(atoms, keys)
    assert values.graph == {"temperature": 300.0}
    np.testing.assert_array_equal(values.atom["charge_of_atom"], np.full(5, 2.0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("one", "'charge' is 'one', not a number"),
        (True, "not a number"),
        (np.nan, "not finite"),
        (1e9, "it must be at least -1e.08 and at most 1e.08"),
        ([1, 2], r"has shape \(2,\); one number is needed"),
    ],
)
def test_values_that_are_refused(value, message):
    atoms = charged(1)
    atoms.info["charge"] = value
    with pytest.raises(InvalidStructureError, match=message):
        read(atoms)


def test_one_number_for_each_atom():
    atoms = charged(1)
    atoms.arrays["site"] = np.zeros((5, 2))
    with pytest.raises(InvalidStructureError, match=r"site.*5 atoms need one number each"):
        read(atoms)


def test_two_keys_must_agree():
    atoms = charged(1)
    key = InputKey("total_charge", ("total_charge", "charge"), "graph", 0.0)
    atoms.info |= {"total_charge": -1, "charge": -1}
    assert read(atoms, [key])[0].graph == {"total_charge": -1.0}
    atoms.info["charge"] = 2
    with pytest.raises(InvalidStructureError, match="is -1 under 'total_charge' and 2 under"):
        read(atoms, [key])


def columns() -> InputColumns:
    names = (("temperature", "total_charge"), ("site", "shielding"))
    atom = np.array([[0, 0.1], [2, 0.2], [1, 0.3]])
    return InputColumns(names, np.array([[300.0, -2], [400.0, 2]]), atom)


def test_a_model_takes_numbers_of_classes_and_numbers_for_every_atom():
    found = encoded(INPUTS, columns(), np.array([1, 2]))
    expected = [[0, 300, 0, 0.1], [4, 400, 2, 0.2], [4, 400, 1, 0.3]]
    np.testing.assert_array_equal(found, expected)
    assert encoded(INPUTS, None, np.zeros(0, dtype=np.int64)).shape == (0, 4)
    assert encoded((), None, np.array([3])).shape == (3, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total_charge", 3, "total_charge is 3, but the model takes an integer, at least -2 and"),
        ("total_charge", 0.5, "total_charge is 0.5, but the model takes an integer"),
        ("site", -1, "site is -1, but the model takes an integer, at least 0 and at most 2"),
    ],
)
def test_values_without_a_class(name, value, message):
    atoms = charged(7)
    if name == "site":
        atoms.arrays["site"][2] = value
    else:
        atoms.info["charge"] = value
    keys = model_input_keys(INPUTS, {"total_charge": "charge"})
    values, _ = read(atoms, keys)
    with pytest.raises(InputError, match=f"^a.xyz: the input {message}"):
        check_inputs(INPUTS, values, 5, "a.xyz")


def test_an_input_that_was_not_read():
    values, _ = read(charged(7), FILE_KEYS[1:])
    with pytest.raises(InputError, match=r"no total_charge, which .*data.info_keys='.total_charge"):
        check_inputs(INPUTS, values, 5, "a.xyz")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "must map names of inputs"),
        ({}, "must map names of inputs"),
        ({"a b": SPECS["site"]}, "cannot be named 'a b'"),
        ({"positions": SPECS["site"]}, "positions is part of every structure"),
        ({"q": 3}, r"specs\.q=3 must be a mapping"),
        (
            {"q": {**SPECS["site"], "emb_dmi": 3}},
            r"no emb_dmi here \(did you mean emb_dim\?\); it takes type, per, emb_dim",
        ),
        ({"q": {**SPECS["site"], "type": "vector"}}, "type='vector' is not known"),
        (
            {"q": {**SPECS["site"], "per": "node"}},
            r"per='node' is not known \(did you mean atom\?\); .* graph, atom",
        ),
        ({"q": {"per": "atom"}}, "type='nothing' is not known"),
        ({"q": {"type": "categorical", "per": "atom", "emb_dim": 3}}, "num_classes=None: give a"),
        ({"q": {**SPECS["site"], "emb_dim": 0}}, "emb_dim=0 is out of range"),
        ({"q": {**SPECS["site"], "offset": 0.5}}, "offset=0.5: give a whole number"),
        ({"q": {**SPECS["site"], "default": 7}}, "default=7 is out of range; .* at most 2"),
        ({"q": {**SPECS["shielding"], "in_dim": 3}}, "in_dim=3: an input is one number per"),
        ({"q": {**SPECS["shielding"], "use_bias": 1}}, "use_bias=1 must be true or false"),
        ({"q": {**SPECS["shielding"], "key": 1}}, "key=1 must be the name of a value"),
    ],
)
def test_specifications_that_are_refused(specs, message):
    with pytest.raises(InputError, match=message):
        ModelSettings(embedding_specs=specs)


def test_a_readout_needs_inputs():
    with pytest.raises(InputError, match=r"needs model\.embedding_specs"):
        ModelSettings(use_embedding_readout=True)


def test_specifications_are_complete_and_stay_as_they_are():
    settings = ModelSettings(embedding_specs=SPECS)
    again = ModelSettings(embedding_specs=settings.embedding_specs)
    assert settings == again
    assert settings.embedding_specs["site"]["offset"] == 0
    assert input_specs(settings.embedding_specs) == INPUTS
    assert ModelSettings().inputs() == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"info_keys": 3}, "info_keys=3 must map names of inputs to names in the files"),
        ({"info_keys": {"q": 1}}, "must map names of inputs to names in the files"),
        ({"info_keys": [["a"]]}, "must map names of inputs"),
        ({"input_defaults": {1: 2, "a": 3}}, "input_defaults names 1, a, which neither"),
        ({"info_keys": ["cell"]}, "cell is part of every structure"),
        ({"info_keys": ["q"], "arrays_keys": ["q"]}, "both name q"),
        ({"info_keys": ["q"], "input_defaults": {"r": 1}}, "input_defaults names r, which neither"),
        ({"info_keys": ["q"], "input_defaults": {"q": "a"}}, "input_defaults.q='a': give a number"),
        ({"input_defaults": 3}, "input_defaults=3 must map"),
    ],
)
def test_keys_that_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DataSettings(train_file="a.xyz", **settings)


def test_keys_of_a_model():
    found = model_input_keys(INPUTS, {"total_charge": "q"})
    keys = [("q",), ("T", "temperature"), ("site",), ("shielding",)]
    assert [key.keys for key in found] == keys
    assert [key.is_given for key in found] == [True, False, False, False]
    of_calculator = model_input_keys(INPUTS, calculator=True)
    assert of_calculator[0].keys == ("total_charge", "charge")
    with pytest.raises(
        InputError, match="arrays_keys names total_charge, but the inputs of the mo"
    ):
        model_input_keys(INPUTS, None, {"total_charge": "q"})
