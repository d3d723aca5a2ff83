"""extxyz: the results of ASE's reader, for real files and all sorts of headers; file ranges."""

import gzip
from io import StringIO

import numpy as np
import pytest
from ase.io.extxyz import read_xyz
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.raw_structure import as_atoms
from mace_train.data.read import extxyz
from mace_train.data.read.file_range import ChunkLimit
from tests.data.factories import crystal, molecule, real_file, write_xyz


def assert_same(ours, theirs):
    """All that ASE makes of a frame, in the same types."""
    np.testing.assert_array_equal(ours.numbers, theirs.numbers)
    np.testing.assert_array_equal(ours.positions, theirs.positions)
    np.testing.assert_array_equal(np.asarray(ours.cell), theirs.cell.array)
    np.testing.assert_array_equal(ours.pbc, theirs.pbc)
    mine, others = (dict(getattr(x.calc, "results", {})) for x in (ours, theirs))
    arrays = {k: v for k, v in ours.arrays.items() if k not in ("numbers", "positions")}
    expected = {k: v for k, v in theirs.arrays.items() if k not in ("numbers", "positions")}
    for found, wanted in ((ours.info, theirs.info), (arrays, expected), (mine, others)):
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
            assert np.asarray(found[key]).dtype == np.asarray(value).dtype, key


def both(text):
    ours = extxyz.parse([line.encode() for line in text.splitlines(keepends=True)])
    return ours, next(read_xyz(StringIO(text), index=0))


HEADERS = [
    "",
    'energy=-1.5 pbc="T T F" Lattice="1 0 0 0 2 0 0 0 3"',
    'Lattice="1.0 0.5 0 0 2 0 0 0 3" REF_energy=-1e-3 n=3 name=abc list="1 2 3"',
    'pbc=F stress="1 2 3 2 5 6 3 6 9" virials="1 2 3 4 5 6 7 8 9" virial="9 8 7 6 5 4 3 2 1"',
    'free_energy=3 magmom=0.5 dipole="0.1 0.2 0.3" big=99999999999999999999',
    'flag other=T truth="T F T" word="two words" quoted=\'single\' curly={1 2 3} square=[1,2]',
    'json="_JSON [[1, 2], [3, 4]]" uid=0012 config_type=7 empty="" comma=1,2,3',
    'key with spaces = 5 a==b equals="a=b" escaped="say \\"hi\\"" unicode="Größe"',
    'time=nan limit=inf negative=-0 exponent=1E5 mixed="1 2.5" text="1 a" date=2024-01-02',
    'spacegroup="F m -3 m" unit_cell=conventional  occupancy="_JSON {\\"0\\": 1}"',
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.filterwarnings("ignore:.*overwriting:UserWarning")
def test_headers(header):
    assert_same(*both(f"2\n{header}\nO 0 0 0\nH 0.5 -1e-3 1\n"))


COLUMNS = [
    ("species:S:1:pos:R:3:forces:R:3:tags:I:1", "H 0 0 0 1 2 3 4"),
    ("Z:I:1:pos:R:3:charge:R:1", "8 1 2 3 -0.5"),
    ("species:S:1:pos:R:3:selected:L:1", "H 0 0 0 T"),
    ("species:S:1:pos:R:3:move_mask:L:1", "H 0 0 0 F"),
    ("species:S:1:pos:R:3:initial_charges:R:1", "H 0 0 0 0.5"),
    ("species:S:1:pos:R:3:label:S:1:dft_forces:R:3", "cu 0 0 0 a1 1 2 3"),
    ("pos:R:3:species:S:1:magmoms:R:1:matrix:R:9", "0 0 0 H 2.5 1 2 3 4 5 6 7 8 9"),
    ("species:S:1:pos:R:3", "H 0 0 0 extra columns are ignored"),
]


@pytest.mark.parametrize(("properties", "line"), COLUMNS)
def test_columns(properties, line):
    assert_same(*both(f"2\nProperties={properties} REF_energy=-1.0\n{line}\n{line}\n"))


@pytest.mark.parametrize("line", ["H 0 0", "H 0 0 x", "Qq 0 0 0", "H 0 0 1.0.0"])
def test_what_ase_refuses_is_refused(line):
    text = f"1\nREF_energy=-1.0\n{line}\n"
    with pytest.raises((ValueError, KeyError, OSError)):
        next(read_xyz(StringIO(text), index=0))
    with pytest.raises((ValueError, KeyError, OSError)):
        extxyz.parse([part.encode() for part in text.splitlines(keepends=True)])


words = st.text("abcXYZ019_.-+:/ TF", min_size=1, max_size=12)
values = st.one_of(
    st.floats(), st.integers(-(10**20), 10**20), st.booleans().map("FT".__getitem__), words
)


@given(
    items=st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), values, max_size=5
    )
)
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore")
def test_random_headers(items):
    reserved = {"Properties", "Lattice", "pbc", "stress", "virial"}
    header = " ".join(f'{k}="{v}"' for k, v in items.items() if k not in reserved)
    text = f"1\n{header}\nH 0 0 0\n"
    try:
        theirs = next(read_xyz(StringIO(text), index=0))
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    assert_same(both(text)[0], theirs)


@pytest.mark.parametrize("name", ["mattersim_bench/mptrj-random-1k", "botnet_3BPA/train_300K"])
def test_real_files(name, monkeypatch):
    with gzip.open(real_file(f"{name}.extxyz.gz"), "rt") as file:
        for _ in range(60):
            count = file.readline()
            lines = [count, *(file.readline() for _ in range(int(count) + 1))]
            with monkeypatch.context() as without_ase:
                without_ase.setattr(extxyz, "_by_ase", None)  # nothing is left to ASE
                ours, theirs = both("".join(lines))
            assert_same(ours, theirs)
            assert_same(as_atoms(ours), theirs)


@pytest.mark.parametrize(("structures", "size"), [(1, 10**9), (3, 10**9), (100, 1), (100, 200)])
def test_file_ranges_are_the_whole_file(tmp_path, structures, size):
    path = write_xyz(
        tmp_path / "a.xyz",
        [molecule(-float(i)) if i % 3 else crystal(-float(i)) for i in range(10)],
    )
    file_ranges = extxyz.file_ranges(path, path, ChunkLimit(structures, size))
    assert sum(file_range.size for file_range in file_ranges) == (tmp_path / "a.xyz").stat().st_size
    assert max(file_range.count for file_range in file_ranges) <= structures
    assert (len(file_ranges) > 1) == (structures < 10 or size < 10**9)
    frames = [parse() for file_range in file_ranges for parse in extxyz.frames(path, file_range)]
    assert [frame.info["REF_energy"] for frame in frames] == [-float(i) for i in range(10)]
    assert [file_range.first for file_range in file_ranges] == np.cumsum(
        [0, *(p.count for p in file_ranges[:-1])]
    ).tolist()
