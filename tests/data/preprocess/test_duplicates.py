"""Structures that are held out and trained on as well are logged; nothing else is."""

import pytest

from tests.data.factories import (
    atoms_of_molecules,
    crystal,
    molecules,
    real_file,
    run,
    write_xyz,
)

TRAIN = [*molecules(12), crystal(), crystal(-8.1, a=3.2), *atoms_of_molecules()]


def warning_of(caplog) -> str:
    return " ".join(r.message for r in caplog.records if "are in train, too" in r.message)


@pytest.mark.parametrize("storage", [{}, {"float32": ["positions", "cell"]}], ids=str)
def test_shared_structures_are_counted_and_one_is_named(tmp_path, caplog, storage):
    other_label = molecules(9)[8]
    other_label.info["REF_energy"] = -2019.0  # the same geometry at another level of theory
    valid = [molecules(20)[15], other_label, crystal(-8.1, a=3.2), crystal(a=3.3)]
    settings = {"structures_per_shard": 5, "E0s": "average", **storage}
    settings["train_file"] = write_xyz(tmp_path / "train.xyz", TRAIN)
    settings["valid_file"] = write_xyz(tmp_path / "valid.xyz", valid)
    run(tmp_path, None, **settings)
    text = warning_of(caplog)
    assert "2 of the 4 structures of valid are in train, too" in text
    assert "valid.xyz, structure 1 is " in text
    assert "train.xyz, structure 8)" in text


def test_neighbours_in_configuration_space_are_not_the_same(tmp_path, caplog):
    moved, strained, other = crystal(), crystal(), crystal()
    moved.positions[0, 0] += 1e-4
    strained.set_cell(strained.cell * 1.0001)
    other.numbers[0] = 28
    valid = write_xyz(tmp_path / "valid.xyz", [moved, strained])
    test = write_xyz(tmp_path / "test.xyz", [crystal()])
    run(
        tmp_path,
        [*TRAIN[:12], *TRAIN[14:], other],
        valid_file=valid,
        test_file=test,
        E0s="average",
    )
    assert warning_of(caplog) == ""


def test_repeated_frames_of_one_file_reach_both_parts_of_its_split(tmp_path, caplog):
    run(
        tmp_path, [*molecules(8), *molecules(8), *atoms_of_molecules()], valid_fraction=0.25, seed=1
    )
    assert "of the 4 structures of valid are in train, too" in warning_of(caplog)


def test_files_that_are_known_to_share_frames(tmp_path, caplog):
    train, valid = (real_file(f"botnet_3BPA/train_{name}.extxyz.gz") for name in ("300K", "mixedT"))
    run(tmp_path, None, train_file=train, valid_file=valid, E0s="average", r_max=2.0)
    assert "31 of the 500 structures of valid are in train, too" in warning_of(caplog)
