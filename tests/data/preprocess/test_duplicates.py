"""Structures that are held out and trained on as well are logged; nothing else is."""

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.preprocess.duplicates import (
    GEOMETRY_KEY,
    TOLERANCE,
    geometries_of,
    geometry_key,
)
from mace_train.data.statistics import open_split
from mace_train.data.structure import Structure
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


@pytest.mark.parametrize("seed", range(4))
def test_repeated_frames_of_one_file_stay_together(tmp_path, caplog, seed):
    caplog.set_level("INFO", logger="mace_train")
    frames = [*molecules(8), *molecules(5), *atoms_of_molecules()]
    output = run(tmp_path, frames, valid_fraction=0.25, seed=seed)
    assert "5 geometries occur more than once (10 structures)" in caplog.text
    assert warning_of(caplog) == ""
    assert len(open_split(output, "valid")) == 3
    assert copies_between(output) == 0


def copies_between(output) -> int:
    """Pairs of one geometry in train and valid, each compared with each."""
    train, valid = (
        [shards.sample(i).structure for i in range(len(shards))]
        for shards in (open_split(output, name) for name in ("train", "valid"))
    )
    return sum(is_copy(a, b) for a in train for b in valid)


def is_copy(a, b) -> bool:
    same_atoms = np.array_equal(a.numbers, b.numbers) and np.array_equal(a.pbc, b.pbc)
    return same_atoms and all(
        np.array_equal(np.rint(getattr(a, name) / 1e-5), np.rint(getattr(b, name) / 1e-5))
        for name in ("positions", "cell")
    )


def test_copies_at_other_levels_of_theory_stay_together(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    atoms = atoms_of_molecules()
    write_xyz(tmp_path / "pbe.xyz", [*molecules(40), *atoms])
    other = [*reversed(molecules(30)), crystal(), crystal(a=3.1), *atoms]
    for structure in other:
        structure.info["REF_energy"] -= 5.0
    write_xyz(tmp_path / "scan.xyz", other)
    files = {"pbe": f"{tmp_path}/pbe.xyz", "scan": f"{tmp_path}/scan.xyz"}
    output = run(
        tmp_path, None, train_file=files, E0s="average", valid_fraction=0.2, workers=2,
        structures_per_shard=7,
    )  # fmt: skip
    assert "30 geometries occur more than once (60 structures)" in caplog.text
    heads = open_split(output, "valid").head_of
    assert {head: list(heads).count(head) for head in ("pbe", "scan")} == {"pbe": 8, "scan": 6}
    assert copies_between(output) == 0


def test_a_real_set_with_copies(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    train = real_file("ECEMC/ECEMC.extxyz.gz")
    output = run(tmp_path, None, train_file=train, E0s="average", r_max=2.0)
    assert copies_between(output) == 0
    assert warning_of(caplog) == ""


def test_files_that_are_known_to_share_frames(tmp_path, caplog):
    train, valid = (real_file(f"botnet_3BPA/train_{name}.extxyz.gz") for name in ("300K", "mixedT"))
    run(tmp_path, None, train_file=train, valid_file=valid, E0s="average", r_max=2.0)
    assert "31 of the 500 structures of valid are in train, too" in warning_of(caplog)


def large(n: int, seed: int = 0) -> list[Atoms]:
    """Frames of 40 atoms of copper, in a slightly different cell each."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        atoms = Atoms(
            "Cu40", rng.uniform(0, 9, (40, 3)), cell=rng.normal(size=(3, 3)) + 9 * np.eye(3)
        )
        atoms.pbc = True
        atoms.info["REF_energy"] = float(rng.normal() - 100)
        atoms.arrays["REF_forces"] = rng.normal(size=(40, 3))
        frames.append(atoms)
    return frames


def with_decimals(frames, n):
    rounded = [atoms.copy() for atoms in frames]
    for atoms in rounded:
        atoms.positions[:] = atoms.positions.round(n)
        atoms.set_cell(atoms.cell.array.round(n))
    return rounded


def in_float32(frames):
    rounded = [atoms.copy() for atoms in frames]
    for atoms in rounded:
        atoms.positions[:] = atoms.positions.astype(np.float32)
    return rounded


def displaced(frames, by):
    moved = [atoms.copy() for atoms in frames]
    for i, atoms in enumerate(moved):
        atoms.positions[i % 40, i % 3] += by
    return moved


@pytest.mark.parametrize("rounded", [lambda f: with_decimals(f, 6), in_float32], ids=["6", "f32"])
def test_copies_of_other_precision_are_copies(tmp_path, caplog, rounded):
    caplog.set_level("INFO", logger="mace_train")
    frames = large(40)
    files = [
        write_xyz(tmp_path / "a.xyz", with_decimals(frames, 8)),
        write_xyz(tmp_path / "b.xyz", rounded(frames)),
    ]
    run(tmp_path, None, train_file=files, E0s="average", valid_fraction=0.25, r_max=2.0)
    assert "40 geometries occur more than once (80 structures)" in caplog.text
    run(
        tmp_path, None, name="two", train_file=files[0], valid_file=files[1], E0s="average",
        r_max=2.0,
    )  # fmt: skip
    assert "40 of the 40 structures of valid are in train, too" in warning_of(caplog)


def keys_of(frames):
    raw = b"".join(geometry_key(Structure.unlabelled(atoms)) for atoms in frames)
    return np.frombuffer(raw, dtype=GEOMETRY_KEY)


def test_displaced_atoms_are_other_structures():
    frames = large(60)
    variants = [*frames, *displaced(frames, 1e-3), *displaced(frames[:1] * 120, 1e-3)]
    n_distinct = len(np.unique(geometries_of(keys_of(variants))))
    assert n_distinct == 60 + 60 + 119  # the first displacement of the first frame is there twice
    again = [*variants, *with_decimals(variants, 6)]
    assert len(np.unique(geometries_of(keys_of(again)))) == n_distinct


@given(seed=st.integers(0, 10_000), n=st.integers(0, 60), spread=st.sampled_from([3e-5, 2e-3]))
@settings(deadline=None, max_examples=60)
def test_geometries_are_those_of_all_pairs(seed, n, spread):
    rng = np.random.default_rng(seed)
    keys = np.zeros(n, dtype=GEOMETRY_KEY)
    keys["discrete"] = rng.integers(0, 2, n)
    shift = np.zeros(6)
    shift[: rng.integers(0, 7)] = spread
    keys["projections"] = rng.uniform(-1, 1, (n, 6)) * np.maximum(shift, TOLERANCE / 2)
    near = np.abs(keys["projections"][:, None] - keys["projections"]).max(-1) <= TOLERANCE
    near &= keys["discrete"][:, None] == keys["discrete"]
    expected = np.arange(n)
    for _ in range(n):
        expected = np.array([expected[near[i]].min() for i in range(n)], dtype=int)
    order = rng.permutation(n)
    found = np.empty(n, dtype=int)
    found[order] = geometries_of(keys[order])
    np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)


def test_many_frames_take_no_time_for_every_pair():
    rng = np.random.default_rng(0)
    keys = np.zeros(100_000, dtype=GEOMETRY_KEY)
    keys["projections"] = rng.normal(size=(len(keys), 6)) * 0.01
    keys[50_000:] = keys[:50_000]
    keys["projections"][50_000:] += rng.uniform(-1e-6, 1e-6, (50_000, 6))
    assert len(np.unique(geometries_of(keys))) == 50_000
