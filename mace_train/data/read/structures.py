"""Structures from files, one at a time, checked."""

from collections.abc import Iterator, Sequence

from ase import Atoms
from ase.io import read as ase_read

from mace_train.atomic_files import scratch_folder
from mace_train.data.labels import LabelReport
from mace_train.data.notes import Notes
from mace_train.data.raw_structure import AtomsLike
from mace_train.data.read.file_range import ChunkLimit
from mace_train.data.read.files import check_files
from mace_train.data.read.formats import parse_fns_of, read_errors, split_file
from mace_train.data.read.unpack import is_packed, unpack
from mace_train.data.structure import LabelKeys, Structure, structure_from_atoms
from mace_train.errors import InputError
from mace_train.settings.inputs import InputKey

_WHOLE_FILE = ChunkLimit(structures=1 << 62, size=1 << 62)


def read_structures(
    files: list[str],
    keys: LabelKeys,
    *,
    require_energy: bool = True,
    labels: LabelReport | None = None,
    inputs: Sequence[InputKey] = (),
) -> Iterator[Structure]:
    """Every structure of ``files``, in order; ``source`` counts from 0 in each file.

    Args:
        files: Paths, patterns or folders, see ``check_files``.
        keys: Names of the labels.
        require_energy: Refuse structures without energy; else their energy is None.
        labels: Counts the labels of every structure and collects the remarks about them, for its
            ``warn``; without it the remarks are logged at the end.
        inputs: What is read beside geometry and labels.

    Raises:
        InputError: a file that is missing, empty, damaged or of unknown format, or a structure
            that ``structure_from_atoms`` refuses; the message names file and structure.
    """
    notes = Notes() if labels is None else labels.notes
    for atoms, source in parsed_structures(files):
        structure = structure_from_atoms(
            atoms, keys, source, notes, require_energy=require_energy, inputs=inputs
        )
        if labels is not None:
            labels.add(atoms, structure)
        yield structure
    if labels is None:
        notes.log()


def parsed_structures(files: list[str]) -> Iterator[tuple[AtomsLike, str]]:
    """(structure as parsed, source) of every structure of ``files``, in order.

    Raises:
        InputError: a file that is missing, empty, damaged or of unknown format.
    """
    for file in check_files(files):
        for path, shown in plain_files(file):
            name, file_ranges = split_file(path, shown, _WHOLE_FILE)
            n_read = 0
            for file_range in file_ranges:
                for parse in parse_fns_of(path, shown, name, file_range):
                    with read_errors(shown, n_read):
                        atoms = parse()
                    yield atoms, f"{shown}, structure {n_read}"
                    n_read += 1
            if n_read == 0:
                raise InputError(f"{shown} holds no structures; give a file that does")


def read_atoms(file: str, index: int) -> Atoms:
    """One structure of a file as ASE reads it, with momenta and constraints.

    The file is checked as for ``read_structures``, because ASE stops at a blank line, goes on
    behind the end of a file, and runs what is in some; of an archive the first file is read.

    Raises:
        InputError: a file that is missing, empty, damaged or of unknown format, or has no structure
            ``index``.
    """
    [file] = check_files([file])
    for path, shown in plain_files(file):
        name, _ = split_file(path, shown, _WHOLE_FILE)
        with read_errors(shown, index):
            try:
                atoms = ase_read(
                    path, index=index, format=name, parallel=False, do_not_split_by_at_sign=True
                )
            except (IndexError, StopIteration):
                raise InputError(
                    f"{shown}: no structure with index={index}; give another, or -1"
                ) from None
        assert isinstance(atoms, Atoms)
        return atoms
    raise InputError(f"{file} holds no structures; give a file that does")


def plain_files(file: str) -> Iterator[tuple[str, str]]:
    """(path, name to show) of the plain files behind ``file``; copies last until the next one."""
    if not is_packed(file):
        yield file, file
        return
    with scratch_folder() as folder:
        with read_errors(file, 0):
            plain = unpack(file, file, folder)
        yield from plain
