"""preprocess: from files to shards and statistics, whole or not at all."""

import gzip
import io
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mace_train import progress
from mace_train.data.neighbors import neighbor_list
from mace_train.data.preprocess import read_block
from mace_train.data.preprocess.split import counter_hash
from mace_train.data.read import read_structures
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import open_split
from mace_train.data.structure import structure_from_atoms
from mace_train.errors import InputError
from tests.data.factories import (
    E_CU,
    E_H,
    E_O,
    KEYS,
    atoms_of_molecules,
    crystal,
    isolated,
    molecules,
    real_file,
    run,
    statistics_in,
    write_xyz,
)


def energies(shards: ShardSet) -> list[float]:
    return [shards.sample(i).structure.energy for i in range(len(shards))]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_arrives_once(tmp_path):
    structures = [*molecules(23), *atoms_of_molecules()]
    output = run(tmp_path, structures, valid_fraction=0.25, structures_per_shard=4)
    assert output == tmp_path / "out"
    assert sorted(p.name for p in output.iterdir()) == ["statistics.json", "train", "valid"]
    read = list(read_structures([str(tmp_path / "train.xyz")], KEYS))
    expected_valid = set(np.argsort(counter_hash(123, 23))[:6].tolist())
    for name in ("train", "valid"):
        shards = open_split(output, name)
        shards.verify()
        expected = [
            s for i, s in enumerate(read[:23]) if (i in expected_valid) == (name == "valid")
        ]
        assert len(shards) == len(expected)
        assert shards.n_shards == -(-len(expected) // 4)
        for i, structure in enumerate(expected):
            sample = shards.sample(i)
            assert sample.structure.source == structure.source
            assert sample.structure.energy == structure.energy
            np.testing.assert_array_equal(sample.structure.positions, structure.positions)
            np.testing.assert_array_equal(sample.structure.forces, structure.forces)
            edges = neighbor_list(structure.positions, structure.cell, structure.pbc, 3.0)
            for field in ("senders", "receivers", "shifts"):
                found = getattr(sample.edges, field)
                np.testing.assert_array_equal(found, getattr(edges, field))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "train.xyz"]


def test_statistics(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    output = run(tmp_path, [*molecules(9), *atoms_of_molecules()], valid_fraction=0)
    statistics = statistics_in(output)
    per_atom = np.array([(-2020.0 - 0.01 * i - E_H - E_O) / 2 for i in range(9)])
    assert statistics.r_max == 3.0
    assert statistics.atomic_numbers == [1, 8]
    assert statistics.E0s == {1: E_H, 8: E_O}
    assert statistics.E0s_source == "isolated"
    assert statistics.avg_num_neighbors == 1.0
    assert statistics.mean_energy_per_atom == pytest.approx(per_atom.mean(), rel=1e-12)
    assert statistics.std_energy_per_atom == pytest.approx(per_atom.std(ddof=1), rel=1e-9)
    assert statistics.rms_forces == pytest.approx(np.sqrt(0.5**2 / 3), rel=1e-12)
    assert statistics.element_counts == {1: 9, 8: 9}
    assert list(statistics.splits) == ["train"]
    assert not (output / "valid").exists()
    assert "2 isolated atoms, used for E0s, not trained on" in caplog.text
    assert "no validation data" in caplog.text


def test_isolated_atoms_may_be_trained_on(tmp_path):
    structures = [*molecules(3), *atoms_of_molecules()]
    output = run(tmp_path, structures, valid_fraction=0, keep_isolated_atoms=True)
    shards = open_split(output, "train")
    assert shards.n_atoms.tolist() == [2, 2, 2, 1, 1]
    assert shards.n_edges.tolist() == [2, 2, 2, 0, 0]
    assert statistics_in(output).avg_num_neighbors == 1.0  # atoms without neighbours do not count


def test_valid_and_test_files(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    valid = write_xyz(tmp_path / "valid.xyz", [*molecules(2), isolated("H", E_H)])
    test = write_xyz(tmp_path / "test.xyz", molecules(4))
    output = run(
        tmp_path, [*molecules(5), *atoms_of_molecules()], valid_file=valid, test_file=[test, test]
    )
    counts = {name: split.n_structures for name, split in statistics_in(output).splits.items()}
    assert counts == {"train": 5, "valid": 3, "test": 8}
    assert energies(open_split(output, "test")) == [m.info["REF_energy"] for m in molecules(4)] * 2
    assert "valid_file: 1 isolated atoms stay in the valid set" in caplog.text


def test_labels_may_be_missing_here_and_there(tmp_path):
    bare = crystal(-8.5)
    del bare.info["REF_stress"], bare.arrays["REF_forces"]
    output = run(tmp_path, [crystal(), bare], E0s={"Cu": E_CU}, valid_fraction=0)
    shards = open_split(output, "train")
    assert shards.has_forces.tolist() == [True, False]
    assert shards.has_stress.tolist() == [True, False]
    assert statistics_in(output).rms_forces == 0.0


def test_average_E0s(tmp_path):
    structures = [*molecules(4), crystal(-8.0)]
    statistics = statistics_in(run(tmp_path, structures, E0s="average", valid_fraction=0))
    assert statistics.E0s_source == "average"
    assert statistics.E0s[29] == pytest.approx(-4.0)
    # only the sum of H and O is determined, and the shortest solution halves it
    mean = np.mean([m.info["REF_energy"] for m in molecules(4)])
    assert statistics.E0s[1] == pytest.approx(mean / 2)
    assert statistics.E0s[8] == pytest.approx(mean / 2)


def test_given_E0s_come_before_isolated_atoms(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    output = run(
        tmp_path,
        [*molecules(4), *atoms_of_molecules()],
        E0s={1: -1.0, 8: -2.0, 92: -3.0},
        valid_fraction=0,
    )
    assert statistics_in(output).E0s == {1: -1.0, 8: -2.0}
    assert statistics_in(output).E0s_source == "given"
    assert "2 isolated atoms, not used for E0s (data.E0s sets them)" in caplog.text


def test_workers_and_seed(tmp_path):
    structures = [*molecules(19), *atoms_of_molecules()]
    one = run(tmp_path, structures, name="one", structures_per_shard=4)
    two = run(tmp_path, structures, name="two", structures_per_shard=4, workers=2)
    assert files_below(one) == files_below(two)
    other = run(tmp_path, structures, name="other", structures_per_shard=4, seed=7)
    assert energies(ShardSet(other / "valid")) != energies(ShardSet(one / "valid"))


def test_overwrite(tmp_path):
    structures = [*molecules(5), *atoms_of_molecules()]
    before = files_below(run(tmp_path, structures))
    with pytest.raises(InputError, match="set overwrite=true"):
        run(tmp_path, structures, r_max=2.0)
    assert files_below(tmp_path / "out") == before
    run(tmp_path, structures, r_max=2.0, overwrite=True)
    assert statistics_in(tmp_path / "out").r_max == 2.0


def test_memory_holds_one_part_at_a_time(tmp_path, monkeypatch):
    """Structures are read as they are written, not all at first."""
    read = []

    def counted(described, *arguments, **keywords):
        read.append(described)
        written = len(list(tmp_path.rglob("*-0.h5")))
        assert len(read) <= 4 * (written + 1)
        return structure_from_atoms(described, *arguments, **keywords)

    monkeypatch.setattr(read_block, "structure_from_atoms", counted)
    run(tmp_path, molecules(30), E0s="average", structures_per_shard=4)
    assert len(read) == 30


def test_progress_is_shown_on_terminals(tmp_path, monkeypatch):
    shown = io.StringIO()
    terminal = partial(Console, file=shown, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal(force_interactive=True))
    output = run(tmp_path, molecules(10), E0s="average")
    assert len(open_split(output, "train")) == 9
    assert "reading train_file" in shown.getvalue()
    assert "10 structures, " in shown.getvalue()
    assert "writing valid" in shown.getvalue()


def test_real_acac(tmp_path):
    files = [
        real_file(f"botnet_acac/{name}.extxyz.gz") for name in ("train_300K", "isolated_atoms")
    ]
    output = run(tmp_path, None, train_file=files, r_max=5.0)
    statistics = statistics_in(output)
    assert statistics.E0s == {1: -13.56842218, 6: -1026.85389961, 8: -2037.79686941}
    assert statistics.splits["train"].n_structures == 450
    assert statistics.splits["valid"].n_structures == 50
    assert 11 < statistics.avg_num_neighbors < 13
    assert abs(statistics.mean_energy_per_atom) < 6  # a binding energy per atom
    first = open_split(output, "train").sample(0)
    assert first.structure.source.startswith(f"{files[0]}, structure ")


@pytest.mark.slow
def test_real_mptrj_and_speed(tmp_path):
    """85 elements; everything but ASE's parsing takes less than 0.5 ms per 15-atom molecule."""
    name = real_file("mattersim_bench/mptrj-random-1k.extxyz.gz")
    output = run(tmp_path, None, train_file=name, E0s="average", r_max=5.0)
    train = open_split(output, "train")
    valid = open_split(output, "valid")
    assert len(train) + len(valid) == 1000
    assert set(valid.elements) <= set(train.elements)
    acac = real_file("botnet_acac/train_300K.extxyz.gz")
    (tmp_path / "acac.xyz").write_bytes(gzip.decompress(Path(acac).read_bytes()) * 8)
    start = time.process_time()
    for _ in read_structures([str(tmp_path / "acac.xyz")], KEYS):
        pass
    reading = time.process_time() - start
    start = time.process_time()
    run(tmp_path, None, name="acac", train_file=str(tmp_path / "acac.xyz"), E0s="average")
    rest = time.process_time() - start - reading
    assert 4000 / rest > 1000  # 2000 and more where nothing else runs


def test_stress_of_slabs_is_counted_and_stored_along_their_plane(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    slabs = [crystal(a=3.0 + 0.01 * i) for i in range(5)]
    for atoms in slabs[:3]:
        atoms.pbc = [True, False, True]
    slabs[1].info.pop("REF_stress")
    slabs[2].cell[1] = 0.0  # no volume
    output = run(tmp_path, slabs, E0s="average", valid_fraction=0)
    assert "1 structures with a stress are periodic in one or two directions" in caplog.text
    assert caplog.text.count("'REF_stress' is not used where a structure") == 1
    assert "stress 3/4 periodic" in caplog.text
    shards = open_split(output, "train")
    assert shards.has_stress.tolist() == [True, False, False, True, True]
    found = [shards.sample(i).structure.stress for i in (0, 3)]
    np.testing.assert_array_equal(found[0], np.diag([0.1, 0.0, 0.3]))
    np.testing.assert_array_equal(found[1], np.diag([0.1, 0.2, 0.3]))


def test_labels_of_weight_0_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    frames = [*molecules(20), *molecules(30)[20:]]
    for atoms in frames[20:]:
        atoms.info.update(REF_energy=0.0, config_energy_weight=0.0)
    output = run(tmp_path, frames, E0s="average", valid_fraction=0)
    assert "the energies of 10 and the forces of 0 structures have weight 0" in caplog.text
    run(tmp_path, frames[:20], name="kept", E0s="average", valid_fraction=0)
    found, kept = (statistics_in(folder) for folder in (output, tmp_path / "kept"))
    assert found.E0s == pytest.approx(kept.E0s, rel=1e-12)
    assert found.std_energy_per_atom == pytest.approx(kept.std_energy_per_atom, rel=1e-9)
