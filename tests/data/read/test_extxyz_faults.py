"""Faulty extended XYZ: read as it was meant, or refused with line, column and remedy.

ASE's reader is the measure: what it refuses is refused here too, with a message of ours, and what
it reads is read alike. The exceptions, where ASE reads something else than was written, are listed.
"""

import gzip

import ase.io
import numpy as np
import pytest

from mace_train.data.read import read_structures
from mace_train.errors import InputError
from tests.data.factories import KEYS

LATTICE = 'Lattice="4 0 0 0 4 0 0 0 4"'
ROWS = ("Cu 0 0 0", "Cu 0 0 2")
WHOLE = "2\nREF_energy=-1.5\nCu 0 0 0\nCu 0 0 2\n"  # four lines


def frame(header="REF_energy=-1.0", rows=ROWS):
    return f"{len(rows)}\n{header}\n" + "".join(f"{row}\n" for row in rows)


def with_row(row, properties="species:S:1:pos:R:3"):
    """The first atom of the second structure of the file, in line 7."""
    return WHOLE + frame(f"REF_energy=-1 Properties={properties}", (row, row))


def with_header(header):
    """The comment of the second structure, in line 6."""
    return WHOLE + frame(f"REF_energy=-1 {header}")


# content of the file -> words of the message about structure 1 (or the one named)
REFUSED = {
    with_row("Cu1 0 0 0"): "line 7 (atom 0), column 1 (species): 'Cu1' is a label, not",
    with_row("Cu+ 0 0 0"): "'Cu+' is a label, not an element: write 'Cu'",
    with_row("'Cu' 0 0 0"): "is a label, not an element: write 'Cu'",
    with_row("29 0 0 0"): "'29' is an atomic number: write 'Cu', or name the column Z:I:1",
    with_row("500 0 0 0"): "'500' is a number, and no atomic number",
    with_row("D 0 0 0"): "'D' is deuterium, to a potential the element H: write 'H'",
    with_row("Xx 0 0 0"): "'Xx' is a dummy atom",
    with_row("Qq 0 0 0"): "'Qq' is no element",
    with_row(" 0 0 0"): "line 7 (atom 0) has 3 columns, '0 0 0', where Properties names 4",
    with_row("Cu,0,0,0"): "has 1 columns, 'Cu,0,0,0', where Properties names 4; put spaces",
    with_row("29.0 0 0 0", "Z:I:1:pos:R:3"): "column 1 (Z): '29.0' is no integer",
    with_row("29 0 0 0", "species:I:1:pos:R:3"): "line 6: Properties=species:I:1:pos:R:3: spec",
    with_row("Cu 1.0D+00 0 0"): "line 7 (atom 0), column 2 (pos): '1.0D+00' has a Fortran exponent",
    with_row("Cu 0 1.0d0 0"): "has a Fortran exponent: write E in place of D, '1.0E0'",
    with_row("Cu -0.123-102 0 0"): "write '-0.123E-102' if it is one",
    with_row("Cu 0.1234-5.678 0"): "'0.1234-5.678' is two numbers without a space",
    with_row("Cu 0 0 ********"): "is what Fortran writes for a number wider than its format",
    with_row("Cu 0,5 0,0 0,0"): "'0,5' has a decimal comma: write '0.5'",
    with_row("Cu 0 0 \u22121"): "has the typographic minus sign U+2212: write -",
    with_row("Cu 0 0\r0"): "line 7, column 7: a carriage return inside the line, where ASE begins",
    with_row("Cu 0 0 one"): "column 4 (pos): 'one' is not a number: correct it",
    with_row("Cu 0 0 1.5eV"): "is not a number alone: write '1.5'",
    with_row("Cu 0 0 0 1.5", "species:S:1:pos:R:3:tags:I:1"): "'1.5' is no integer: name the col",
    with_row("Cu 0 0 0 9999999999", "species:S:1:pos:R:3:t:I:1"): "does not fit into an integer",
    with_row("Cu 0 0 0\0"): "line 7, column 9: a byte of zero; the file is damaged",
    with_row("Cu 0 0 0 1 2", "species:S:1:pos:R:3:forces:R:3"): "has 6 columns",
    with_row("Cu 0 0 0", "species:S:1:pos:R:3:x:R:0"): "x has '0' columns",
    with_row("Cu 0 0 0", "species:S:1:pos:R:3:x:R:-1"): "x has '-1' columns",
    with_row("Cu 0 0 0", "species:S:1:pos:Q:3"): "the type of pos is 'Q'; write R, I, S or L",
    with_row("Cu 0 0", "species:S:1:pos:R:2"): "pos has 2 columns; positions have 3",
    with_row("Cu 0 0 0 1 1", "species:S:1:pos:R:3:q:R:1:q:R:1"): "names 'q' twice",
    with_header('Lattice="4 0 0 0 4 0 0 0"'): "line 6: Lattice has 8 numbers where 9 are needed",
    with_header('Lattice="4,0 0,0 0,0 0,0 4,0 0,0 0,0 0,0 4,0"'): "'4,0', which has a decimal",
    with_header('Lattice="4.0D+00 0 0 0 4 0 0 0 4"'): "'4.0D+00', which has a Fortran",
    with_header("Lattice=cubic"): "Lattice holds 'cubic', which is not a number",
    with_header("Lattice"): "Lattice has no value",
    with_header('stress="1 2 3 4 5 6"'): "six numbers (xx, yy, zz, yz, xz, xy) are read",
    with_header(f'{LATTICE} pbc="T T"'): 'line 6: pbc="T T" is not understood; write T or F',
    with_header('x="_JSON {bad"'): "lines 5 to 8 cannot be read (JSONDecodeError",
    WHOLE + "2.0" + frame()[1:]: "line 5 is b'2.0' where a number of atoms should stand",
    WHOLE + "9" * 5000 + frame()[1:]: "line 5 gives 99999999999999999999... (5000 digits) atoms",
    WHOLE + "0" * 5000 + frame()[1:]: "(5000 digits) atoms, more than",
    WHOLE + "\0" * 60: "bytes of zero mean that the file was not written to its end",
}  # fmt: skip
BYTES_REFUSED = {
    (WHOLE * 2).encode("utf-16"): "this is UTF-16 text: convert it with iconv -f UTF-16 -t UTF-8",
    (WHOLE * 2).encode("utf-16-le"): "this is UTF-16 text",
    (WHOLE * 2).encode("utf-16-be"): "this is UTF-16 text",
    (WHOLE * 2).encode("utf-32"): "this is UTF-32 text",
    b"# a comment\n" + WHOLE.encode(): "structure 0: line 1 is b'# a comment' where a number",
    WHOLE.encode() + with_header("name=M\xfcller")[len(WHOLE) :].encode("latin-1"):
        "structure 1: line 6, column 21: the byte 0xfc is not UTF-8; it is '\xfc' if the",
}  # fmt: skip
# ASE reads these, and something else than is written there
NOT_AS_ASE = {
    WHOLE.replace("\n", "\r"): "structure 0: .* lone carriage returns: convert it with tr",
    with_header(f'{LATTICE} pbc="yes yes no"'): 'pbc="yes yes no" is not understood',
    with_header(f'{LATTICE} pbc="t t f"'): 'pbc="t t f" is not understood',
    with_header(f"{LATTICE} pbc=TTT"): 'pbc="TTT" is not understood',
    with_header(f'{LATTICE} pbc="nan 0 0"'): "is not understood",
    with_header(f'{LATTICE} pbc="2 0 0"'): 'pbc="2 0 0" is not understood',
    with_row("Cu", "species:S:1"): "Properties=species:S:1 has no positions; add pos:R:3",
    with_row("Cu 0 0 0", "species:S:1:pos:R"): "ends in 'pos:R'",
    with_row("0 0 0", "pos:R:3"): "has no elements; add species:S:1 or Z:I:1",
    with_row("X 0 0 0"): r"atom 0 has atomic number 0 \(X, a dummy atom\)",
    with_row("0 0 0 0", "Z:I:1:pos:R:3"): "atom 0 has atomic number 0",
    with_header(f'{LATTICE} stress="1 2 3 4 5 6 7 8 9"'): "'stress' is .* not symmetric",
    with_row(
        "Cu 1_0.15 0 0"
    ): r"line 7 \(atom 0\), column 2 \(pos\): '1_0.15' has an underscore: write",
    with_row("29_0 0 0 0", "Z:I:1:pos:R:3"): r"column 1 \(Z\): '29_0' has an underscore",
    with_header('Lattice="1_0 0 0 0 4 0 0 0 4"'): "Lattice holds '1_0', which has an underscore",
    WHOLE + frame("REF_energy=-1_1.5"): "'REF_energy' is '-1_1.5', not a number; it has an under",
    WHOLE + frame("REF_energy=-1_1.5 word {a}"): "'REF_energy' is '-1_1.5', not a number",
    with_header("config_type=a\0b"): "config_type='a.x00b' is not a name",
    with_header("head"): "head=True is not a name",
}


def written(folder, content, packed):
    path = folder / ("a.xyz.gz" if packed else "a.xyz")
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    return path


def refusal(path):
    with pytest.raises(InputError) as error:
        list(read_structures([str(path)], KEYS))
    assert str(error.value).startswith(f"{path}, structure ")
    return str(error.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_what_ase_refuses_is_named(tmp_path, packed):
    for content, words in {**REFUSED, **BYTES_REFUSED}.items():
        path = written(tmp_path, content, packed)
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever ASE raises
            ase.io.read(path, ":")
        message = refusal(path)
        assert words in message, (content, message)
        if content in REFUSED:
            assert ", structure 1: " in message
        assert "cannot be read (KeyError" not in message


def test_a_count_for_which_ase_would_read_lines_for_ever(tmp_path):
    path = written(tmp_path, WHOLE + "9" * 20 + frame()[1:], packed=False)
    assert f", structure 1: line 5 gives {'9' * 20} atoms, more than any file holds" in refusal(
        path
    )


def test_what_ase_reads_wrongly_is_refused(tmp_path):
    for content, words in NOT_AS_ASE.items():
        path = written(tmp_path, content, packed=False)
        ase.io.read(path, ":")
        with pytest.raises(InputError, match=words):
            list(read_structures([str(path)], KEYS))


READ = {
    "crlf": (WHOLE * 2).replace("\n", "\r\n"),
    "trailing": WHOLE + frame("REF_energy=-1" + " \t" * 4000, ("Cu 0 0 0" + "\t" * 9000, ROWS[1])),
    "symbols": WHOLE + frame(rows=("cu 0 0 0", "CU 0 0 2")),
    "numbers": with_row("29 0 0 1", "Z:I:1:pos:R:3"),
    "unicode spaces": with_row("Cu 0\xa00 1"),
    "utf-8": with_header("name=Größe"),
    "unclosed quote": with_header('name="abc'),
    "left-handed": with_header('Lattice="0 4 0 4 0 0 0 0 4"'),
    "spaces around =": WHOLE + frame("REF_energy = -1.0"),
    "json": with_header('REF_x="_JSON [[1.0, 2.0], [3.0, 4.0]]" flags="_JSON [true, false]"'),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", READ)
def test_what_ase_reads_is_read(tmp_path, name, packed):
    path = written(tmp_path, READ[name], packed)
    for mine, theirs in zip(
        read_structures([str(path)], KEYS), ase.io.read(path, ":"), strict=True
    ):
        np.testing.assert_array_equal(mine.numbers, theirs.numbers)
        np.testing.assert_array_equal(mine.positions, theirs.positions)
        np.testing.assert_array_equal(mine.cell, theirs.cell.array)
        np.testing.assert_array_equal(mine.pbc, theirs.pbc)
        assert mine.energy == theirs.info["REF_energy"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_byte_order_mark_is_skipped(tmp_path, packed):
    path = written(tmp_path, b"\xef\xbb\xbf" + (WHOLE * 3).encode(), packed)
    assert [s.energy for s in read_structures([str(path)], KEYS)] == [-1.5] * 3


REMARKS = {
    with_header("name=a name=b"): "'name' is given 2 times, as 'a' and 'b': the last is read",
    with_header('x={1 2} x="3 4" word'): "'x' is given 2 times, as '1 2' and '3 4'",
    with_row("Cu 0 0 0 1 2 3"): "atoms have 7 columns, of which the first 4 are read",
    with_header('lattice="4 0 0 0 4 0 0 0 4"'): "'lattice' is not read, its name is 'Lattice'",
    with_header(f'{LATTICE} PBC="F F F"'): "'PBC' is not read, its name is 'pbc'",
}


def test_what_is_read_otherwise_than_it_seems_is_said_once(tmp_path, caplog):
    for content, words in REMARKS.items():
        path = written(tmp_path, content + content[len(WHOLE) :], packed=False)
        caplog.clear()
        assert len(list(read_structures([str(path)], KEYS))) == 3
        (line,) = (record.getMessage() for record in caplog.records)
        assert line.startswith(f"{path}, structure 1: {words}"), line
        assert line.endswith("(first of 2 structures)")


def test_the_same_value_twice_is_not_said(tmp_path, caplog):
    path = written(tmp_path, with_header("name=a name=a"), packed=False)
    list(read_structures([str(path)], KEYS))
    assert not caplog.records
