"""Random damage to shards and input files, and what becomes of it.

A damaged shard must be refused or read as it was. A damaged text file may still be a valid text
file that says something else, so the truth for it is what ASE reads from the damaged file.
"""

import gzip
import os
import random
import shutil
import signal
import tempfile
import warnings
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ase.io
import h5py
import numpy as np

from mace_train.data.read import read_structures
from mace_train.data.shards.arrays import LAYOUT, Storage
from mace_train.data.shards.shard_set import ShardSet, sample_of, shard_path, write_shard
from mace_train.data.structure import LabelKeys
from mace_train.errors import InputError
from tests.data.factories import crystal, molecules, random_structure, write_xyz

KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
R_MAX = 2.5
SECONDS_PER_CASE = 60  # then it counts as hanging, which is a crash
STORAGES = {
    "plain": Storage(),
    "float32": Storage(float32=("positions", "forces", "cell", "stress")),
    "no edges": Storage(stores_edges=False),
    "gzip": Storage(compression="gzip"),
}
INPUTS = ("a.xyz", "a.xyz.gz", "a.traj", "a.db")


def make(folder: Path) -> None:
    """Undamaged shards of every storage, and input files of several formats."""
    rng = np.random.default_rng(0)
    samples = [sample_of(random_structure(rng), R_MAX) for _ in range(12)]
    for name, storage in STORAGES.items():
        (folder / name).mkdir(parents=True)
        write_shard(shard_path(folder / name, 0), samples, R_MAX, storage)
    structures = [*molecules(6), *(crystal(-8.0 - i) for i in range(4))]
    text = write_xyz(folder / "a.xyz", structures)
    (folder / "a.xyz.gz").write_bytes(gzip.compress(Path(text).read_bytes(), mtime=0))
    for suffix in ("traj", "db"):
        ase.io.write(folder / f"a.{suffix}", structures)


def flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def zero(content: bytearray, rng: random.Random) -> None:
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.randrange(1, 600))
    content[first:last] = bytes(last - first)


def double(content: bytearray, rng: random.Random) -> None:
    first = rng.randrange(len(content))
    content[first:first] = content[first : first + rng.randrange(1, 300)]


def exchange_lines(content: bytearray, rng: random.Random) -> None:
    lines = bytes(content).split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    content[:] = b"\n".join(lines)


def scribble(content: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(content))
    content[place : place + 1] = rng.choice(
        [b"\x00", b"\xff", b"9", b"-", b" ", b"\n", b"nan", b'"']
    )


# text as programs and editors write them: units, labels, Fortran, other encodings
SNIPPETS = (
    b"1.0D+02", b"-0.123-102", b"1.5-2.5", b"*****", b"0,5", b"1.0eV", b"T", b"29", b"Cu1", b"D",
    b"X", b"\xe9", b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe2\x88\x921", b"\r", b"\r\n", b"\t\t", b"=",
    b"{", b"_JSON [", b"REF_energy=-1 ", b'pbc="T T" ', b'pbc="F F F" ', b'Lattice="1 2 3" ',
    b"Properties=species:S:1 ",
)  # fmt: skip


def paste(content: bytearray, rng: random.Random) -> None:
    """Put one of the SNIPPETS between or in the place of words."""
    words = [i for i, byte in enumerate(content) if byte in b" \n="]
    place = rng.choice(words) + 1
    following = next((i for i in words if i >= place), len(content))
    content[place : following if rng.random() < 0.7 else place] = rng.choice(SNIPPETS)


def mark(content: bytearray, rng: random.Random) -> None:
    """A byte order mark in front, or the whole text in another encoding."""
    text = bytes(content).decode()
    other = rng.choice(["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
    content[:] = text.encode(other)


def exchange_datasets(path: Path, rng: random.Random) -> None:
    """Exchange, drop, shorten or reorder data sets, or change an attribute, through HDF5."""
    with h5py.File(path, "r+") as file:
        names = [name for name in LAYOUT if name in file]
        kind = rng.randrange(4)
        first, second = rng.sample(names, 2)
        if kind == 0:
            file.move(first, "x")
            file.move(second, first)
            file.move("x", second)
        elif kind == 1:
            values = file[first][()]
            del file[first]
            if rng.random() < 0.7:
                changed = values[:-1] if rng.random() < 0.5 else values[::-1]
                file.create_dataset(first, data=changed)
        elif kind == 2:
            attribute = rng.choice(sorted(file.attrs))
            value = file.attrs[attribute]
            changed = value + 1 if isinstance(value, (int, float, np.number)) else f"{value}x"
            file.attrs[attribute] = changed if rng.random() < 0.8 else "text"
        elif file[first].size:
            values = file[first][()]
            flat = values.reshape(-1).view(np.uint8)
            flat[rng.randrange(len(flat))] ^= 1 << rng.randrange(8)
            file[first][...] = values


BYTES = (flip, flip, cut, zero, double)
TEXT = (*BYTES, exchange_lines, scribble, paste, paste, mark)


def damage(original: Path, damaged: Path, rng: random.Random) -> str:
    """A damaged copy; what was done."""
    shutil.copy(original, damaged)
    is_shard = original.suffix == ".h5"
    if is_shard and rng.random() < 0.3:
        exchange_datasets(damaged, rng)
        return "exchange_datasets"
    content = bytearray(damaged.read_bytes())
    how = rng.choice(TEXT if original.suffix == ".xyz" else BYTES)
    how(content, rng)
    damaged.write_bytes(content)
    return how.__name__


def contents(folder: Path) -> list[bytes]:
    """All that a folder of shards gives to its users."""
    shards = ShardSet(folder)
    found = [repr((len(shards), shards.r_max, shards.heads, shards.elements)).encode()]
    found.append(shards.n_atoms.tobytes() + shards.n_edges.tobytes())
    for i in range(len(shards)):
        sample = shards.sample(i)
        for part in (sample.structure, sample.edges):
            for value in vars(part).values():
                found.append(
                    value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
                )
    batch = shards.batch(np.arange(len(shards)))
    return found + [np.ascontiguousarray(value).tobytes() for value in vars(batch).values()]


def outcome_of_shard(folder: Path, expected: list[bytes]) -> str:
    """refused, same, or (a fault) DIFFERENT."""
    try:
        return "same" if contents(folder) == expected else "DIFFERENT"
    except InputError as error:
        return "refused" if str(folder) in str(error) else f"NO NAME: {error}"


def outcome_of_input(path: Path) -> str:
    """refused, or same as ASE reads the damaged file, or (a fault) DIFFERENT."""
    try:
        ours = list(read_structures([str(path)], KEYS, require_energy=False))
    except InputError as error:
        return "refused" if str(path) in str(error) else f"NO NAME: {error}"
    if path.suffix == ".xyz" and (content := path.read_bytes()).startswith(BOM_UTF8):
        path.write_bytes(content[len(BOM_UTF8) :])  # which ASE does not skip
    theirs = ase.io.read(path, ":")
    if len(ours) != len(theirs):
        return "DIFFERENT"
    for mine, atoms in zip(ours, theirs, strict=True):
        energy = atoms.info.get("REF_energy", getattr(atoms.calc, "results", {}).get("energy"))
        same = (
            np.array_equal(mine.numbers, atoms.numbers)
            and np.array_equal(mine.positions, atoms.positions)
            and np.array_equal(mine.cell, atoms.cell.array * atoms.pbc.any())
            and np.array_equal(mine.pbc, atoms.pbc)
            and (mine.energy == energy or (mine.energy is None and energy is None))
        )
        if not same:
            return "DIFFERENT"
    return "same"


def run_cases(first: int, last: int, seed: int) -> Iterator[tuple[str, str]]:
    """(what was damaged and how, outcome) of each case."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, place = Path(folder) / "whole", Path(folder) / "damaged"
        make(whole)
        expected = {name: contents(whole / name) for name in STORAGES}
        for case in range(first, last):
            rng = random.Random(f"{seed} {case}")
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            if rng.random() < 0.6:
                name = rng.choice(list(STORAGES))
                how = damage(shard_path(whole / name, 0), shard_path(place, 0), rng)
                kind = f"shard ({name}), {how}"
                outcome = outcome_of_shard(place, expected[name])
            else:
                name = rng.choice(INPUTS)
                kind = f"{name}, {damage(whole / name, place / name, rng)}"
                outcome = outcome_of_input(place / name)
            yield kind, outcome


def run_guarded(first: int, last: int, seed: int) -> Counter[tuple[str, str]]:
    """The cases, counted; in a process of their own, so that a crash is an outcome."""
    counts: Counter[tuple[str, str]] = Counter()
    while first < last:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                try:
                    signal.alarm(SECONDS_PER_CASE)
                    for kind, outcome in run_cases(first, last, seed):
                        signal.alarm(SECONDS_PER_CASE)
                        pipe.write(f"{kind}\t{outcome}\n".replace("\r", " "))
                        pipe.flush()
                except BaseException as error:
                    pipe.write(f"case\tFAULT {type(error).__name__}: {str(error)[:200]!r}\n")
                    pipe.flush()
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            lines = [line.rstrip("\n").split("\t", 1) for line in pipe]
        _, status = os.waitpid(pid, 0)
        counts.update((kind, outcome) for kind, outcome in lines)
        first += len(lines)
        if status != 0:
            counts["case", f"CRASH {status} in case {first}"] += 1
            first += 1
    return counts
