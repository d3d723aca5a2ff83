"""read: any format ASE reads, compressed files, and files that are not whole."""

import bz2
import gzip
import lzma

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import GPa

from mace_train.data.labels import LabelReport
from mace_train.data.read import check_files, read_structures
from mace_train.errors import InputError
from tests.data.factories import KEYS, REAL_DATA, crystal, molecule, real_file, write_xyz


def structures_of(*files):
    return list(read_structures([str(file) for file in files], KEYS))


def test_several_files_in_order(tmp_path):
    first = write_xyz(tmp_path / "a.xyz", [molecule(-1.0), crystal(-2.0)])
    second = write_xyz(tmp_path / "b.extxyz", [molecule(-3.0)])
    structures = structures_of(first, second)
    assert [s.energy for s in structures] == [-1.0, -2.0, -3.0]
    assert [s.source for s in structures] == [
        f"{first}, structure 0",
        f"{first}, structure 1",
        f"{second}, structure 0",
    ]
    np.testing.assert_array_equal(structures[1].stress, np.diag([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_compressed(tmp_path, suffix, pack):
    plain = write_xyz(tmp_path / "a.xyz", [molecule(-1.0), crystal(-2.0)])
    packed = tmp_path / f"a.xyz.{suffix}"
    packed.write_bytes(pack.compress((tmp_path / "a.xyz").read_bytes()))
    for from_plain, from_packed in zip(structures_of(plain), structures_of(packed), strict=True):
        assert from_plain.energy == from_packed.energy
        np.testing.assert_array_equal(from_plain.positions, from_packed.positions)


@pytest.mark.parametrize("suffix", ["traj", "json", "db"])
def test_other_formats_with_a_calculator(tmp_path, suffix, caplog):
    atoms = crystal()
    atoms.info.clear()
    del atoms.arrays["REF_forces"]
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.ones((2, 3)))
    path = tmp_path / f"a.{suffix}"
    ase.io.write(path, [atoms, atoms])
    structures = structures_of(path)
    assert [s.energy for s in structures] == [-3.0, -3.0]
    np.testing.assert_array_equal(structures[1].forces, np.ones((2, 3)))
    assert caplog.text.count("taking the energy that ASE parsed") == 1


def test_a_name_with_an_at_sign(tmp_path):
    path = write_xyz(tmp_path / "a@2.xyz", [molecule()] * 3)
    assert len(structures_of(path)) == 3


def test_patterns(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    names = [write_xyz(tmp_path / f"{name}.xyz", [molecule()]) for name in ("b", "a", "c")]
    odd = write_xyz(tmp_path / "a*.xyz", [crystal()])
    pattern = str(tmp_path / "[abc].xyz").replace("[abc]", "?")
    assert check_files([names[2], pattern]) == [names[2], names[1], names[0], names[2]]
    assert f"{pattern} matches 3 files" in caplog.text
    assert check_files([odd]) == [odd]  # a file of that very name
    assert [s.source for s in read_structures([str(tmp_path / "*b.xyz")], KEYS)] == [
        f"{names[0]}, structure 0"
    ]
    with pytest.raises(InputError, match=r"\*\.cif: no file matches this pattern"):
        check_files([str(tmp_path / "*.cif")])


def test_folders(tmp_path, caplog):
    caplog.set_level("INFO", logger="mace_train")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    with pytest.raises(InputError, match=r"folder is a folder without files that are known"):
        structures_of(folder)
    write_xyz(folder / "b.xyz", [molecule(-1.0)])
    write_xyz(folder / "below" / "a.xyz", [molecule(-2.0)])
    (folder / "README.md").write_text("no structures")
    assert [s.energy for s in structures_of(folder)] == [-1.0, -2.0]
    assert f"{folder} holds 2 files with structures and 1 others" in caplog.text
    (folder / "OUTCAR").write_text("vasp")
    (folder / "vasprun.xml").write_text("<modeling>")
    with pytest.raises(InputError, match="holds OUTCAR and vasprun, which describe the same"):
        structures_of(folder)
    ase.io.write(tmp_path / "a.bundle", crystal(), format="bundletrajectory")  # a format of ASE
    assert check_files([str(tmp_path / "a.bundle")]) == [str(tmp_path / "a.bundle")]


def test_structures_without_energy(tmp_path):
    bare = molecule()
    bare.info.clear()
    path = write_xyz(tmp_path / "a.xyz", [molecule(-1.0), bare])
    labels = LabelReport(KEYS)
    structures = read_structures([path], KEYS, require_energy=False, labels=labels)
    assert [s.energy for s in structures] == [-1.0, None]
    assert labels.counts.summary() == "labels: energy 1/2, forces 2/2"
    with pytest.raises(InputError, match="structure 1: no energy"):
        structures_of(path)


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <atominfo><array name="atoms"><set>
  <rc><c>Na</c><c>1</c></rc><rc><c>Cl</c><c>2</c></rc>
 </set></array></atominfo>
 <kpoints>
  <varray name="kpointlist"><v>0. 0. 0.</v></varray><varray name="weights"><v>1.</v></varray>
 </kpoints>
 <structure name="initialpos">{geometry}</structure>
 <calculation>
  <scstep><energy><i name="e_fr_energy">-6.50</i><i name="e_0_energy">-6.25</i></energy></scstep>
  <structure>{geometry}</structure>
  <varray name="forces"><v>0.5 0.0 -0.25</v><v>-0.5 0.0 0.25</v></varray>
  <varray name="stress"><v>10. 1. 2.</v><v>1. 20. 3.</v><v>2. 3. 30.</v></varray>
  <energy><i name="e_fr_energy">-6.50</i><i name="e_0_energy">-6.25</i></energy>
 </calculation>
</modeling>
"""
GEOMETRY = """
 <crystal><varray name="basis"><v>4. 0. 0.</v><v>0. 5. 0.</v><v>0. 0. 6.</v></varray></crystal>
 <varray name="positions"><v>0. 0. 0.</v><v>0.5 0.5 0.5</v></varray>
"""


def test_vasp(tmp_path, caplog):
    """Energy extrapolated to no smearing; stress in kbar, positive under compression."""
    path = tmp_path / "vasprun.xml"
    path.write_text(VASPRUN.format(geometry=GEOMETRY))
    (structure,) = structures_of(path)
    assert structure.numbers.tolist() == [11, 17]
    assert structure.pbc.all()
    np.testing.assert_allclose(structure.cell, np.diag([4.0, 5.0, 6.0]))
    np.testing.assert_allclose(structure.positions[1], [2.0, 2.5, 3.0])
    assert structure.energy == pytest.approx(-6.25, abs=1e-12)
    np.testing.assert_array_equal(structure.forces, [[0.5, 0, -0.25], [-0.5, 0, 0.25]])
    kbar = np.array([[10.0, 1, 2], [1, 20, 3], [2, 3, 30]])
    np.testing.assert_allclose(structure.stress, -0.1 * GPa * kbar, rtol=1e-12)
    for label in ("energy", "forces", "stress"):
        assert f"taking the {label} that ASE parsed" in caplog.text


FRAME = "2\nREF_energy=-1.0\nO 0 0 0\nH 0 0 1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"", "is empty"),
        ("a.xyz", b"\n", "holds no structures"),
        ("a.xyz", (FRAME + "2\nREF_energy=-1.0\nO 0 0 0\n").encode(), "structure 1: .* 1 of 2"),
        ("a.xyz", (FRAME + "2\n").encode(), "structure 1: the file ends after 0 of 2 atoms"),
        ("a.xyz", (FRAME + "\n" + FRAME).encode(), "line 5 is blank, but more follows in line 6"),
        ("a.xyz", (FRAME + "H 0 0 2\n" + FRAME).encode(), "structure 1: line 5 is"),
        (
            "a.xyz",
            (FRAME + FRAME.replace("H 0 0 1", "H 0 0 one")).encode(),
            "structure 1: line 8 .atom 1., column 4 .pos.: 'one'",
        ),
        (
            "a.xyz",
            (FRAME + FRAME.replace("H", "Qq")).encode(),
            "structure 1: line 8 .atom 1.* 'Qq' is no element",
        ),
        ("a.xyz", b"\x00\xff\xfe binary", "structure 0"),
        ("a.xyz", FRAME.encode("utf-16"), "structure 0"),
        ("a.xyz.gz", gzip.compress(FRAME.encode(), mtime=0)[:-12], "structure 0: cannot be read"),
        ("a.xyz.gz", b"not packed", "structure 0: cannot be read"),
        ("a.xyz.xz", b"not packed", "structure 0: cannot be read"),
        ("a.traj", b"- of Ulm what is this?", "structure 0: cannot be read"),
        ("a.unknown", b"something", "structure 0: cannot be read"),
        ("a.json", b"{", "structure 0: cannot be read"),
        ("a.db", b"not sqlite", "structure 0: cannot be read"),
        ("POSCAR", b"comment\n1.0\n", "structure 0: cannot be read"),
        ("OUTCAR", b"vasp.6\n", "OUTCAR"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        structures_of(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_found_before_reading(tmp_path):
    first = write_xyz(tmp_path / "a.xyz", [molecule()])
    structures = read_structures([first, str(tmp_path / "b.xyz")], KEYS)
    with pytest.raises(InputError, match=r"b\.xyz: no such file"):
        next(structures)


def test_a_torn_trajectory(tmp_path):
    path = tmp_path / "a.traj"
    ase.io.write(path, [crystal()] * 3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"a\.traj, structure"):
        structures_of(path)


def test_temporary_copies_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    packed = tmp_path / "a.xyz.gz"
    packed.write_bytes(gzip.compress(FRAME.encode() * 3))
    structures = read_structures([str(packed)], KEYS)
    next(structures)
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    structures.close()
    assert not list((tmp_path / "temporary").iterdir())


def test_real_files_read_as_ase_reads_them():
    name = real_file("mattersim_bench/mptrj-random-1k.extxyz.gz")
    with gzip.open(name, "rt") as file:
        lines = [next(file) for _ in range(3000)]
    assert REAL_DATA.exists()
    energies = [float(x.split("REF_energy=")[1].split()[0]) for x in lines if "REF_energy=" in x]
    structures = read_structures([name], KEYS)
    for energy in energies:
        assert next(structures).energy == energy
    structures.close()
