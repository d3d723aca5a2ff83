"""Bad input files: every case writes one and returns the arguments that preprocess it."""

import shutil

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from tests.bad_input.place import water
from tests.conftest import labelled


def nan_energy(place):
    return place.preprocess(place.file([water(), water(REF_energy=float("nan"))]))


def infinite_energy(place):
    return place.preprocess(place.file([water(REF_energy=float("inf"))]))


def nan_forces(place):
    atoms = water()
    atoms.arrays["REF_forces"][1, 2] = np.nan
    return place.preprocess(place.file([atoms]))


def nan_positions(place):
    atoms = water()
    atoms.positions[0, 0] = np.nan
    return place.preprocess(place.file([atoms]))


def huge_energy(place):
    return place.preprocess(place.file([water(), water(REF_energy=1e300)]))


def huge_energy_of_an_isolated_atom(place):
    lone = labelled(Atoms("H"), "IsolatedAtom")
    lone.info["REF_energy"] = 1e300
    return place.preprocess(place.file([water(), lone]))


def huge_forces(place):
    atoms = water()
    atoms.arrays["REF_forces"][1, 2] = 1e200
    return place.preprocess(place.file([water(), atoms]), "float32=[forces]")


def huge_virials(place):
    atoms = labelled(bulk("Al"), "crystal")
    atoms.info["REF_virials"] = np.full((3, 3), 1e300)
    del atoms.info["REF_stress"]
    return place.preprocess(place.file([atoms]))


def huge_positions(place):
    atoms = water()
    atoms.positions[2, 0] = 1e200
    return place.preprocess(place.file([atoms]))


def huge_cell(place):
    atoms = labelled(bulk("Al"), "crystal")
    atoms.set_cell(atoms.cell * 1e200)
    return place.preprocess(place.file([atoms]))


def tiny_cell(place):
    atoms = labelled(bulk("Al"), "crystal")
    atoms.set_cell(atoms.cell * 1e-150)
    return place.preprocess(place.file([atoms]))


def negative_weight(place):
    return place.preprocess(place.file([water(config_weight=-1.0)]))


def huge_weight(place):
    return place.preprocess(place.file([water(config_forces_weight=1e300)]))


def huge_E0(place):
    return place.preprocess(place.xyz, "data.E0s={H: 1e300, N: 0, O: 0, Al: 0}")


def forces_of_wrong_shape(place):
    atoms = water()
    atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"][:, :2].copy()
    return place.preprocess(place.file([atoms]))


def stress_of_wrong_shape(place):
    atoms = labelled(bulk("Al"), "crystal")
    atoms.info["REF_stress"] = np.zeros(5)
    return place.preprocess(place.file([atoms]))


def missing_energy(place):
    atoms = water()
    del atoms.info["REF_energy"]
    return place.preprocess(place.file([atoms]))


def wrong_key_name(place):
    return place.preprocess(place.xyz, "data.energy_key=dft_energy")


def forces_key_that_nothing_has(place):
    return place.preprocess(place.xyz, "data.forces_key=foo")


def folder_instead_of_a_file(place):
    return place.preprocess(place.folder)


def pattern_that_matches_nothing(place):
    return place.preprocess(place.folder / "*.cif")


def element_without_e0(place):
    path = place.folder / "no_e0.xyz"
    write(path, [labelled(Atoms("H"), "IsolatedAtom"), water(), water()], format="extxyz")
    return place.preprocess(path)


def isolated_atoms_disagree(place):
    path = place.file([water(), water()])
    atoms = labelled(Atoms("H"), "IsolatedAtom")
    atoms.info["REF_energy"] += 1.0
    write(path, [*read(path, ":"), atoms], format="extxyz")
    return place.preprocess(path)


def e0s_file_is_missing(place):
    return place.preprocess(place.xyz, "data.E0s=nowhere.json")


def empty_file(place):
    path = place.folder / "empty.xyz"
    path.write_text("")
    return place.preprocess(path)


def file_is_not_there(place):
    return place.preprocess(place.folder / "nowhere.xyz")


def file_of_unknown_format(place):
    path = place.folder / "notes.unknown"
    path.write_text("these are no atoms\n")
    return place.preprocess(path)


def truncated_xyz(place):
    path = place.folder / "short.xyz"
    path.write_text("\n".join(place.xyz.read_text().splitlines()[:-2]) + "\n")
    return place.preprocess(path)


def only_isolated_atoms(place):
    return place.preprocess(place.file([]))


def everything_goes_to_validation(place):
    return place.preprocess(place.file([water()]), "data.valid_fraction=0.99")


def atoms_on_top_of_each_other(place):
    atoms = water()
    atoms.positions[1] = atoms.positions[2]
    return place.preprocess(place.file([atoms]))


def singular_cell(place):
    atoms = labelled(bulk("Al"), "crystal")
    atoms.set_cell([[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    return place.preprocess(place.file([atoms]))


def rewritten(place, *changes):
    """Preprocess the good file with ``changes``: (old text, new text)."""
    content = place.xyz.read_bytes()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new, 1)
    path = place.folder / "bad.xyz"
    path.write_bytes(content)
    return place.preprocess(path)


def labels_for_symbols(place):
    return rewritten(place, (b"\nO ", b"\nO1 "))


def atomic_numbers_for_symbols(place):
    return rewritten(place, (b"\nO ", b"\n8 "))


def latin_1_comment(place):
    return rewritten(place, (b"config_type=", b"name=M\xfcller config_type="))


def utf_16(place):
    path = place.folder / "bad.xyz"
    path.write_text(place.xyz.read_text(), encoding="utf-16")
    return place.preprocess(path)


def fortran_exponent(place):
    return rewritten(place, (b"\nO ", b"\nO 1.0D+00 "))


def periodicity_in_words(place):
    return rewritten(place, (b'pbc="T T T"', b'pbc="yes yes no"'))


def output_is_already_there(place):
    place.output.mkdir()
    (place.output / "mine.txt").write_text("keep")
    return place.preprocess(place.xyz)


def output_holds_shards(place):
    shutil.copytree(place.prepared, place.output)
    return place.preprocess(place.xyz)


def validation_has_a_new_element(place):
    copper = place.folder / "copper.xyz"
    write(copper, [labelled(bulk("Cu"), "crystal")], format="extxyz")
    return place.preprocess(place.xyz, f"data.valid_file={copper}")


# case -> words that the message must have (what, where, got, remedy)
CASES = {
    nan_energy: ("bad.xyz", "energy", "nan"),
    infinite_energy: ("bad.xyz", "energy", "inf"),
    nan_forces: ("bad.xyz", "forces"),
    nan_positions: ("bad.xyz", "position", "nan"),
    huge_energy: ("bad.xyz, structure 5: 'REF_energy' is 1e+300", "1e+08 per atom", "1.5e6"),
    huge_energy_of_an_isolated_atom: ("bad.xyz, structure 5: 'REF_energy' is 1e+300",),
    huge_forces: ("bad.xyz, structure 5: 'REF_forces' is 1e+200 at index [1, 2]", "eV/Å"),
    huge_virials: ("bad.xyz, structure 4: 'REF_virials' is 1e+300",),
    huge_positions: ("bad.xyz, structure 4: position of atom 2 is 1e+200", "0.1 mm"),
    huge_cell: ("bad.xyz, structure 4: the cell is ", "0.1 mm"),
    tiny_cell: ("bad.xyz, structure 4: ", "does not span"),
    negative_weight: ("bad.xyz, structure 4: 'config_weight' is -1", "at least 0"),
    huge_weight: ("bad.xyz, structure 4: 'config_forces_weight' is 1e+300",),
    huge_E0: ("data.E0s.H=1e+300", "1.5e6"),
    forces_of_wrong_shape: ("bad.xyz", "(3, 2)"),
    stress_of_wrong_shape: ("bad.xyz", "stress", "5"),
    missing_energy: ("bad.xyz", "energy", "REF_forces"),
    wrong_key_name: ("train.xyz", "dft_energy", "REF_energy"),
    forces_key_that_nothing_has: ("data.train_file", "foo", "REF_forces"),
    folder_instead_of_a_file: ("is a folder",),
    pattern_that_matches_nothing: ("*.cif",),
    element_without_e0: ("E0", "O", "average"),
    isolated_atoms_disagree: ("H", "isolated"),
    e0s_file_is_missing: ("nowhere.json",),
    empty_file: ("empty.xyz",),
    file_is_not_there: ("nowhere.xyz",),
    file_of_unknown_format: ("notes.unknown",),
    truncated_xyz: ("short.xyz",),
    only_isolated_atoms: ("isolated",),
    everything_goes_to_validation: ("valid_fraction",),
    atoms_on_top_of_each_other: ("bad.xyz",),
    singular_cell: ("bad.xyz", "cell"),
    labels_for_symbols: ("bad.xyz, structure", "line", "(species): 'O1' is a label", "write 'O'"),
    atomic_numbers_for_symbols: ("(species): '8' is an atomic number", "write 'O'"),
    latin_1_comment: ("bad.xyz, structure", "0xfc is not UTF-8", "iconv -f LATIN1"),
    utf_16: ("bad.xyz, structure 0", "UTF-16", "iconv"),
    fortran_exponent: ("(pos): '1.0D+00' has a Fortran exponent", "write E"),
    periodicity_in_words: ('pbc="yes yes no" is not understood', "write T or F"),
    output_is_already_there: ("output", "mine.txt", "choose a new folder"),
    output_holds_shards: ("output", "overwrite=true"),
    validation_has_a_new_element: ("Cu",),
}
