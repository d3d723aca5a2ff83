"""preprocess: its messages about labels and files, and what it refuses, leaving nothing."""

import numpy as np
import pytest

from mace_train.data.preprocess import read_block
from mace_train.data.preprocess.preprocess import preprocess
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import open_split
from mace_train.data.structure import structure_from_atoms
from mace_train.errors import InputError
from mace_train.settings import DataSettings, PreprocessSettings
from tests.data.factories import (
    E_CU,
    E_H,
    E_O,
    atoms_of_molecules,
    crystal,
    isolated,
    molecule,
    molecules,
    run,
    statistics_in,
    write_xyz,
)


def renamed(atoms, **names):
    """``atoms`` with labels under other names."""
    for old, new in names.items():
        for place in (atoms.info, atoms.arrays):
            if old in place:
                place[new] = place.pop(old)
    return atoms


def test_labels_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    structures = [crystal(-8.0 + 0.1 * i) for i in range(3)] + molecules(5)
    for i in (1, 4, 5):
        renamed(structures[i], REF_forces="dft_forces", REF_stress="Stress")
    test = write_xyz(tmp_path / "test.xyz", [crystal()])
    run(tmp_path, structures, E0s="average", valid_fraction=0, test_file=test)
    assert "train: 8 structures, 16 atoms" in caplog.text
    assert "labels: energy 8/8, forces 5/8, stress 2/3 periodic" in caplog.text
    assert "labels: energy 1/1, forces 1/1, stress 1/1\n" in caplog.text
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"][:2]
    assert warnings[0].startswith("data.train_file: 3 of 8 structures have no forces")
    assert warnings[0].endswith("similar names found: dft_forces")
    assert warnings[1].startswith("data.train_file: 1 of 3 periodic structures have no stress")
    assert warnings[1].endswith("similar names found: Stress")


def test_labels_that_are_all_there_are_not_warned_of(tmp_path, caplog):
    structures = [*molecules(4), *atoms_of_molecules()]  # no stress, and none to be had
    run(tmp_path, structures, valid_fraction=0)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("key", ["energy_key", "forces_key", "stress_key", "virials_key"])
def test_a_key_that_nothing_has(tmp_path, key):
    structures = [crystal(-8.0 + 0.1 * i) for i in range(4)]
    with pytest.raises(InputError, match=r"'foo'.*REF_forces") as error:
        run(tmp_path, structures, E0s={"Cu": E_CU}, **{key: "foo"})
    assert key in str(error.value)
    assert visible(tmp_path) == ["train.xyz"]


def test_a_key_that_something_has(tmp_path, caplog):
    structures = [crystal(-8.0 + 0.1 * i) for i in range(4)]
    renamed(structures[0], REF_forces="foo")
    run(tmp_path, structures, E0s={"Cu": E_CU}, valid_fraction=0, forces_key="foo")
    assert "3 of 4 structures have no forces (forces_key=foo)" in caplog.text
    assert "similar names found: REF_forces" in caplog.text


def test_a_stress_key_does_not_matter_to_molecules(tmp_path):
    given = molecules(4)
    keys = {"stress_key": "stress", "virials_key": "virial"}
    run(tmp_path, given, E0s="average", valid_fraction=0, **keys)
    shards = ShardSet(tmp_path / "out" / "train")
    assert len(shards) == 4
    for sample in map(shards.sample, range(4)):
        number = int(sample.structure.source.rsplit(" ", 1)[1])
        assert sample.structure.energy == given[number].info["REF_energy"]
        np.testing.assert_array_equal(sample.structure.forces, given[number].arrays["REF_forces"])
        assert sample.structure.stress is None


def test_unmarked_isolated_atoms_are_pointed_out(tmp_path):
    boxed = isolated("O", E_O, "Default")
    boxed.set_cell(np.eye(3) * 3.0)  # half-open: an image at r_max is no neighbour
    boxed.pbc = True
    small = boxed.copy()
    small.set_cell(np.eye(3) * 2.9)
    with pytest.raises(
        InputError, match=r"but 2 single periodic atoms .* config_type=IsolatedAtom"
    ):
        run(tmp_path, [*molecules(3), boxed, boxed, small])
    boxed.info["config_type"] = "IsolatedAtom"
    run(tmp_path, [*molecules(3), boxed, isolated("H", E_H)], valid_fraction=0)


def test_files_of_two_splits(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = write_xyz(tmp_path / "train.xyz", molecules(4))
    (tmp_path / "link.xyz").symlink_to(train)
    other = write_xyz(tmp_path / "other.xyz", molecules(2))
    run(tmp_path, None, train_file=train, valid_file=other, test_file=other, E0s="average")
    assert "both name" not in caplog.text
    changes = {"train_file": [other, train], "E0s": "average", "overwrite": True}
    run(tmp_path, None, valid_file="train.xyz", test_file="link.xyz", **changes)
    for name in ("valid", "test"):
        assert f"data.{name}_file and data.train_file both name {train}" in caplog.text


def test_patterns_as_files(tmp_path):
    for name in ("b", "a"):
        write_xyz(tmp_path / f"{name}.xyz", molecules(2))
    output = run(tmp_path, None, train_file=f"{tmp_path}/*.xyz", E0s="Average", valid_fraction=0)
    shards = open_split(output, "train")
    sources = [shards.sample(i).structure.source for i in range(4)]
    assert sources == [f"{tmp_path}/{name}.xyz, structure {i}" for name in "ab" for i in range(2)]
    assert statistics_in(output).E0s_source == "average"


@pytest.mark.parametrize("name", ["train", "test"])
def test_an_unknown_element_stops_at_its_structure(tmp_path, monkeypatch, name):
    """The rest of a long file is not read before the error."""
    read = []

    def counted(described, keys, source, *arguments, **keywords):
        read.append(source)
        return structure_from_atoms(described, keys, source, *arguments, **keywords)

    monkeypatch.setattr(read_block, "structure_from_atoms", counted)
    path = write_xyz(tmp_path / "long.xyz", [*molecules(2), crystal(), *molecules(5)])
    files = {"train_file": path}
    if name == "test":
        files = {
            "train_file": write_xyz(tmp_path / "train.xyz", molecules(3)),
            "test_file": path,
        }
    with pytest.raises(InputError, match=r"long\.xyz, structure 2: .*Cu \(29\)"):
        run(tmp_path, None, E0s={1: E_H, 8: E_O}, **files)
    assert read[-1].endswith("long.xyz, structure 2")


def without_energy():
    broken = molecule()
    broken.info["REF_energy"] = float("nan")
    return broken


LONE = [isolated("H", E_H), isolated("O", E_O)]

BAD = {
    "coincident": ([molecule(distance=0.0), *LONE], {}, "structure 0: atoms 0 and 1 are"),
    "nan": ([molecule(), without_energy(), *LONE], {}, "structure 1: 'REF_energy' is not finite"),
    "only isolated": (LONE, {}, "holds only isolated atoms"),
    "only kept isolated": (
        LONE,
        {"keep_isolated_atoms": True, "valid_fraction": 0},
        "no two atoms .* closer than r_max=3.0",
    ),
    "no isolated": (molecules(3), {}, "no isolated atoms to take E0s from"),
    "one missing": ([*molecules(3), isolated("H", E_H)], {}, r"\(E0\) for O \(8\)"),
    "given missing": (molecules(3), {"E0s": {1: -1.0}}, r"for O \(8\); data.E0s has H"),
    "no file of E0s": (molecules(3), {"E0s": "avrage"}, "E0s=avrage: cannot read"),
    "contradiction": ([*molecules(3), *LONE, isolated("H", -12.0)], {}, "structure 5: isolated"),
    "out of reach": (
        [molecule(distance=5.0), molecule(distance=6.0)],
        {"E0s": "average"},
        "no two atoms",
    ),
    "no training left": (
        [*molecules(2), *LONE],
        {"valid_fraction": 0.9},
        "leaves none for training",
    ),
    "copies of one": (
        [*(molecule(energy) for energy in (-20.0, -21.0, -22.0)), *LONE],
        {},
        "the 3 structures are one group .* is not divided",
    ),
    "no group": (molecules(2), {"group_key": "run"}, r"structure 0: no 'run' \(data.group_key\)"),
    "one structure": ([*molecules(1), *LONE], {}, "leaves none for training"),
}


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


IN_WORKERS = ("coincident", "nan")  # found while workers run; the rest before or after


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 1) for name in BAD), *((name, 2) for name in IN_WORKERS)]
)
def test_bad_input_leaves_nothing(tmp_path, name, workers):
    structures, changes, message = BAD[name]
    with pytest.raises(InputError, match=message):
        run(tmp_path, structures, workers=workers, **changes)
    assert visible(tmp_path) == ["train.xyz"]


@pytest.mark.parametrize("name", ["valid", "test"])
def test_elements_that_are_not_trained(tmp_path, name):
    other = write_xyz(tmp_path / "other.xyz", [molecule(), crystal()])
    with pytest.raises(InputError, match=rf"other.xyz, structure 1: Cu \(29\) in the {name} set"):
        run(tmp_path, molecules(3), E0s={1: E_H, 8: E_O, 29: E_CU}, **{f"{name}_file": other})
    assert not (tmp_path / "out").exists()


def test_missing_and_unset_files(tmp_path):
    for key in ("train_file", "valid_file", "test_file"):
        with pytest.raises(InputError, match=r"nowhere\.xyz: no such file"):
            run(tmp_path, molecules(1), **{key: str(tmp_path / "nowhere.xyz")})
    with pytest.raises(InputError, match=r"data\.train_file is not set"):
        preprocess(PreprocessSettings(output=str(tmp_path / "out")))
    with pytest.raises(InputError, match="names no file"):
        run(tmp_path, None, train_file=[])
    with pytest.raises(InputError, match="output is not set"):
        preprocess(PreprocessSettings(data=DataSettings(train_file="x")))
