"""Changes of extxyz files: comment lines, columns, counts, numbers, encodings."""

import random
import re
from pathlib import Path

from tests.fuzz.trees import damage_text

COMMENTS = (
    *('Lattice="1 0 0 0 1 0 0 0"', 'Lattice="a b c"', 'Lattice="0 0 0 0 0 0 0 0 0"', "Lattice=1"),
    *('Lattice="1e300 0 0 0 1 0 0 0 1"',),
    *('Lattice="nan 0 0 0 1 0 0 0 1"', 'Lattice=""'),
    *('pbc="T T"',),
    *('pbc="x y z"', 'pbc="1 0 1"', "pbc=T", "Properties=species:S:1", "Properties=pos:R:3", "="),
    *("Properties=species:S:1:pos:R:2",),
    *("Properties=species:S:1:pos:R:x", "Properties=", "a="),
    *("=a",),
    *("Properties=species:S:1:pos:R:3:REF_forces:R:999999999", "Properties=species:Q:1:pos:R:3"),
    *("Properties=species:S:1:pos:R:3:pos:R:3",),
    *("REF_energy=1 REF_energy=2", 'a="b', "a='b", "a={b"),
    *("REF_energy=nan", "REF_energy=1e300"),
    *("REF_energy=-1e308", "REF_energy=1D3", "REF_energy=x"),
    *('REF_energy="1 2"', "REF_energy=T", 'REF_energy=""'),
    *("REF_energy=1e400", "REF_energy=_JSON 1"),
    *('REF_stress="1 2 3"', 'REF_stress="nan 0 0 0 0 0 0 0 0"'),
    *("REF_stress=1", 'REF_virials="1"'),
    *('REF_stress="1e200 0 0 0 1e200 0 0 0 0"',),
    *('REF_virials="1 2 3 4 5 6 7 8 9"', "config_weight=0"),
    *("config_weight=-1", "config_weight=nan"),
    *("config_weight=x", "config_weight=1e300", "head=x"),
    *("head=1", 'head=""', "config_type=", "config_type=1"),
    *('config_type="ü 日"', "\\", "_JSON", "'", '"'),
    *('a="[1, 2', 'a="{\\"b\\": 1}"', "a=_JSON {", "a=1e5 b c"),
    *("日本=1", "\x00", "\x1b[31m", "é", "=" * 50),
    *("a[1]=2", 'a="\\""', "a=1,2", "key with blanks", ":" * 9),
    *("x=" + "1 " * 3000, "é=é", "\ufeff"),
)  # fmt: skip
NUMBERS = (
    *("nan", "inf", "-inf", "1e300", "1e400", "-1e38", "1e39"),
    *("x", "1D0", "1.0d+01", "1,5", "", "0x1"),
    *("1_0", "--1", "1e", "9" * 40, "1e-320", "１", "1 2", "T", "'", "\t", "−1"),
)  # fmt: skip
SPECIES = (
    "Cu1",
    "29",
    "X",
    "",
    "h",
    "CU",
    "Xx",
    "-1",
    "0",
    "119",
    "999",
    "H_1",
    "D",
    "日",
    "Al3+",
    '"H"',
)
COUNTS = ("0", "-1", "x", "", "1.0", "1e1", "99999999", "9" * 30, " 3 ", "3 3", "03", "+3", "١")


def change_extxyz(path: Path, rng: random.Random) -> str:
    """Damage an extxyz file; what was done."""
    if rng.random() < 0.25:
        return damage_text(path, rng)
    lines = path.read_text().splitlines()
    comments = [i for i, line in enumerate(lines) if "Properties=" in line]
    k = rng.choice(comments)
    n = int(lines[k - 1])
    how = rng.choice(CHANGES)
    what = how(lines, k, n, rng)
    path.write_text("\n".join(lines) + "\n")
    return what


def comment_added(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    text = rng.choice(COMMENTS)
    lines[k] = f"{lines[k]} {text}" if rng.random() < 0.5 else f"{text} {lines[k]}"
    return f"comment + {text[:40]!r}"


def comment_replaced(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    text = rng.choice(COMMENTS)
    key = text.partition("=")[0]
    pattern = rf'{re.escape(key)}=("[^"]*"|\S+)'
    if key and re.search(pattern, lines[k]):
        lines[k] = re.sub(pattern, lambda _: text, lines[k], count=1)
    else:
        lines[k] = text
    return f"comment {text[:40]!r}"


def comment_cut(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    lines[k] = lines[k][: rng.randrange(len(lines[k]))]
    return "comment cut"


def number(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    i = k + 1 + rng.randrange(n)
    words = lines[i].split()
    column = rng.randrange(1, len(words))
    words[column] = rng.choice(NUMBERS)
    lines[i] = " ".join(words)
    return f"column {column}={words[column][:20]!r}"


def species(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    i = k + 1 + rng.randrange(n)
    words = lines[i].split()
    words[0] = rng.choice(SPECIES)
    lines[i] = " ".join(words)
    return f"species {words[0]!r}"


def count(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    lines[k - 1] = rng.choice(COUNTS)
    return f"count {lines[k - 1][:20]!r}"


def columns(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    i = k + 1 + rng.randrange(n)
    words = lines[i].split()
    if rng.random() < 0.5:
        del words[rng.randrange(len(words))]
    else:
        words.insert(rng.randrange(len(words)), "1")
    lines[i] = " ".join(words)
    return f"{len(words)} columns"


def line_lost(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    del lines[k + rng.randrange(-1, n + 1)]
    return "line lost"


def line_added(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    lines.insert(
        k + rng.randrange(-1, n + 2), rng.choice(("", " ", "#", "3", "H 0 0 0", "\x00", "\x0c"))
    )
    return "line added"


def same_place(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    i, j = k + 1 + rng.randrange(n), k + 1 + rng.randrange(n)
    lines[i] = lines[j]
    return "atoms in one place"


def large_values(lines: list[str], k: int, n: int, rng: random.Random) -> str:
    scale = rng.choice(("e30", "e100", "e200", "e300"))
    for i in range(k + 1, k + 1 + n):
        words = lines[i].split()
        lines[i] = " ".join([*words[:4], *(word + scale for word in words[4:])])
    return f"forces times {scale}"


CHANGES = (
    *(comment_added, comment_added, comment_added),
    *(comment_replaced, comment_replaced, comment_cut),
    *(number, number, species, count, columns, line_lost, line_added, same_place, large_values),
)
