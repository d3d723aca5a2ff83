"""Groups that a split does not divide: by a key, by time, joined by copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.preprocess.groups import Grouping, groups_of
from mace_train.data.statistics import open_split
from mace_train.errors import InputError
from mace_train.settings import DataSettings
from tests.data.factories import atoms_of_molecules, files_below, molecules, run, write_xyz


def connected(geometries, groups):
    """By brute force: the smallest index that can be reached through equal keys."""
    n = len(geometries)
    found = list(range(n))
    for _ in range(n):
        for i in range(n):
            for j in range(n):
                if geometries[i] == geometries[j] or groups[i] == groups[j]:
                    found[i] = found[j] = min(found[i], found[j])
    return found


@given(
    keys=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12),
    grouped=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_groups_are_connected_components(keys, grouped):
    geometries = np.array([key[0] for key in keys], dtype=np.int64)
    groups = np.array([key[1] for key in keys], dtype=np.uint64)
    found = groups_of(geometries, groups if grouped else None)
    expected = connected(geometries, groups if grouped else geometries)
    for i in range(len(keys)):
        for j in range(len(keys)):
            assert (found[i] == found[j]) == (expected[i] == expected[j])


def sides(output) -> dict[str, list[int]]:
    """The numbers in their file of the structures of train and valid."""
    shards = {name: open_split(output, name) for name in ("train", "valid")}
    return {
        name: [int(s.sample(i).structure.source.split()[-1]) for i in range(len(s))]
        for name, s in shards.items()
    }


def test_a_key_groups_structures_of_all_files(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    frames = molecules(40)
    for i, atoms in enumerate(frames):
        atoms.info["trajectory"] = f"run {i % 10}"
    a = write_xyz(tmp_path / "a.xyz", frames[:25])
    b = write_xyz(tmp_path / "b.xyz", [*frames[25:], *atoms_of_molecules()])
    settings = {"group_key": "trajectory", "valid_fraction": 0.2, "structures_per_shard": 6}
    output = run(tmp_path, None, train_file=[a, b], workers=2, **settings)
    text = "10 groups by data.group_key=trajectory; none is divided, the largest holds 4 of 40"
    assert text in caplog.text
    distances = {}
    for name in ("train", "valid"):
        shards = open_split(output, name)
        positions = [shards.sample(i).structure.positions for i in range(len(shards))]
        distances[name] = [round((p[1, 2] - 0.8) * 1000) for p in positions]
    assert len(distances["valid"]) == 8
    runs = {name: {i % 10 for i in found} for name, found in distances.items()}
    assert not runs["train"] & runs["valid"]
    alone = run(tmp_path, None, name="alone", train_file=[a, b], **settings)
    assert files_below(alone) == files_below(output)


def test_neighbours_in_time_stay_together(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    frames = [*molecules(60), *atoms_of_molecules()]
    settings = {"structures_per_group": 5, "valid_fraction": 0.25, "structures_per_shard": 7}
    output = run(tmp_path, frames, **settings)
    assert "12 groups by data.structures_per_group=5; none is divided" in caplog.text
    found = sides(output)
    assert len(found["valid"]) == 15
    blocks = {name: {i // 5 for i in numbers} for name, numbers in found.items()}
    assert not blocks["train"] & blocks["valid"]


def test_groups_that_share_a_structure_are_joined(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    frames = molecules(30)
    frames[5].positions[:] = frames[0].positions  # two trajectories with one first frame
    output = run(
        tmp_path, [*frames, *atoms_of_molecules()], structures_per_group=5, valid_fraction=0.3
    )
    assert "6 groups by data.structures_per_group=5, 5 after joining" in caplog.text
    assert "1 geometries occur more than once (2 structures)" in caplog.text
    valid = set(sides(output)["valid"])
    assert len(valid & set(range(10))) in (0, 10)


def test_a_group_that_is_not_used_is_said(tmp_path, caplog):
    valid = write_xyz(tmp_path / "valid.xyz", molecules(2))
    frames = [*molecules(5), *atoms_of_molecules()]
    run(tmp_path, frames, valid_file=valid, group_key="nowhere")
    assert "data.group_key=nowhere has no effect" in caplog.text


def test_other_groups_after_an_interruption(tmp_path):
    """What a former run read with other groups is read again, and gives the same as a new run."""
    frames = [*molecules(40), *atoms_of_molecules()]
    bad = [*frames, *atoms_of_molecules()[:1]]
    bad[-1].info["REF_energy"] = -1.0  # a contradiction that stops the run after reading
    settings = {"valid_fraction": 0.25, "structures_per_shard": 8}
    with pytest.raises(InputError):
        run(tmp_path, bad, structures_per_group=4, **settings)
    assert (tmp_path / ".out.partial").exists()
    output = run(tmp_path, frames, structures_per_group=10, **settings)
    fresh = run(tmp_path, frames, name="fresh", structures_per_group=10, **settings)
    assert files_below(output) == files_below(fresh)
    assert len({i // 10 for i in sides(output)["valid"]}) == 1


def test_one_group_per_structure():
    with pytest.raises(InputError, match="are both set"):
        DataSettings(train_file="x", group_key="run", structures_per_group=2)
    with pytest.raises(InputError, match="structures_per_group"):
        DataSettings(train_file="x", structures_per_group=0)


@pytest.mark.parametrize(
    ("one", "other"), [(3, 3.0), (np.int64(3), np.float64(3)), ([1, 2], np.array([1.0, 2.0]))]
)
def test_whole_numbers_are_one_value(one, other):
    def key(value):
        atoms = molecules(1)[0]
        atoms.info["traj"] = value
        return Grouping("traj").group_key(atoms, "a.xyz", 0, isolated=False)

    assert key(one) == key(other) != key(3.5)
