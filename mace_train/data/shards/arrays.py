"""The arrays of a shard: made from structures one by one, or joined from parts of other shards.

One row per structure in ``structures``, and three kinds of concatenated arrays. Structure i owns

    numbers, positions, forces    [atom_offsets[i]   : atom_offsets[i + 1]]
    senders, receivers, shifts    [edge_offsets[i]   : edge_offsets[i + 1]]
    sources                       [source_offsets[i] : source_offsets[i + 1]]

Shards of structures with inputs beside the geometry (input_values.py) have three arrays more:
their names, a row of numbers per structure, and one per atom.
``structure_checksums[i]`` is the CRC-32 of all of that as it is stored, so that a reader can check
what it reads and nothing else. Cost: one concatenation per array.
"""

import json
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.input_values import NO_INPUTS, InputColumns
from mace_train.data.neighbors import EdgeList
from mace_train.data.structure import Structure

Arrays = Mapping[str, NDArray[Any]]

# arrays of a shard and the sizes of their axes: structures, atoms, edges of the shard, or numbers
LAYOUT: dict[str, tuple[str | int, ...]] = {
    "atom_offsets": ("structures + 1",),
    "edge_offsets": ("structures + 1",),
    "source_offsets": ("structures + 1",),
    "structures": ("structures",),
    "structure_checksums": ("structures",),
    "numbers": ("atoms",),
    "positions": ("atoms", 3),
    "forces": ("atoms", 3),
    "senders": ("edges",),
    "receivers": ("edges",),
    "shifts": ("edges", 3),
    "config_type_names": ("bytes of config_type_names",),  # JSON list
    "head_names": ("bytes of head_names",),  # JSON list
    "sources": ("bytes of sources",),  # UTF-8, cut by source_offsets
    "elements": ("elements",),  # sorted atomic numbers that occur
}
INPUT_LAYOUT: dict[str, tuple[str | int, ...]] = {  # all of them, or none
    "input_names": ("bytes of input_names",),  # JSON: [names per structure, names per atom]
    "graph_inputs": ("structures", "inputs per structure"),
    "atom_inputs": ("atoms", "inputs per atom"),
}
OF_ATOMS = ("numbers", "positions", "forces")
OF_EDGES = ("senders", "receivers", "shifts")
FLOAT_FIELDS = ("positions", "forces", "cell", "stress")  # may be stored as float32
OWNED = {"atom_offsets": OF_ATOMS, "edge_offsets": OF_EDGES, "source_offsets": ("sources",)}


@dataclass(frozen=True)
class Sample:
    """One structure with its neighbour list."""

    structure: Structure
    edges: EdgeList


@dataclass(frozen=True)
class Storage:
    """How the arrays of a shard are stored."""

    float32: tuple[str, ...] = ()  # of FLOAT_FIELDS; the others are float64
    stores_edges: bool = True  # else readers find the neighbours again
    compression: str | None = None  # gzip or lzf, of what belongs to atoms and edges

    def float_type(self, name: str) -> str:
        """The type of a field."""
        return "<f4" if name in self.float32 else "<f8"


def row_type(storage: Storage) -> np.dtype[Any]:
    """The type of ``structures``: all scalars of a structure, fields in descending alignment."""
    floats: list[tuple[str, str, tuple[int, ...]]] = [
        ("energy", "<f8", ()),
        ("weights", "<f8", (4,)),  # of the structure, its energy, forces, stress
        ("cell", storage.float_type("cell"), (3, 3)),
        ("stress", storage.float_type("stress"), (3, 3)),
    ]
    floats.sort(key=lambda field: field[1], reverse=True)
    integers: list[tuple[str, str, tuple[int, ...]]] = [
        ("config_type", "<u4", ()),  # index into config_type_names
        ("head", "<u4", ()),  # index into head_names
        ("n_atoms_with_neighbors", "<u4", ()),
        ("pbc", "u1", (3,)),
        ("has_energy", "u1", ()),
        ("has_forces", "u1", ()),
        ("has_stress", "u1", ()),
    ]
    unpadded = np.dtype([*floats, *integers])
    padding = -unpadded.itemsize % 8
    return np.dtype([*floats, *integers, *([("padding", "u1", (padding,))] if padding else [])])


def is_allowed(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether a shard may hold its array ``name`` in this type."""
    if name == "structures":
        choices = (Storage(float32=chosen) for chosen in ((), ("cell",), ("stress",), FLOAT_FIELDS))
        return dtype in [row_type(storage) for storage in choices]
    if name in ("positions", "forces"):
        return dtype in ("<f4", "<f8")
    if name in OWNED:
        return dtype == "<i8"
    if name in ("graph_inputs", "atom_inputs"):
        return dtype == "<f8"
    if name in OF_EDGES:
        return dtype.kind == ("i" if name == "shifts" else "u")
    return dtype == ("<u4" if name == "structure_checksums" else "u1")


def with_views(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """``arrays`` with the fields of ``structures`` as arrays [n_structures, ...] of their own."""
    rows = arrays["structures"]
    views = {name: rows[name] for name in rows.dtype.names or () if name != "padding"}
    return {**arrays, **views}


class ShardArrays:
    """The arrays of a shard while structures are added; edges are made compact at once."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._structures: list[Structure] = []
        self._edges: list[EdgeList] = []
        self._n_with_neighbors: list[int] = []

    def add(self, sample: Sample) -> None:
        """Append one structure."""
        edges, n_atoms = sample.edges, sample.structure.n_atoms
        index_type = _index_type(n_atoms)
        self._structures.append(sample.structure)
        self._n_with_neighbors.append(_count_receivers(edges))
        self._edges.append(
            EdgeList(
                edges.senders.astype(index_type),
                edges.receivers.astype(index_type),
                edges.shifts.astype(_signed_type(edges.shifts)),
            )
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays of LAYOUT, which gives their shapes."""
        structures, edges, storage = self._structures, self._edges, self.storage
        rows, names = _rows(structures, storage)
        rows["n_atoms_with_neighbors"] = self._n_with_neighbors
        zeros = np.zeros((max([s.n_atoms for s in structures], default=0), 3))
        forces = [zeros[: s.n_atoms] if s.forces is None else s.forces for s in structures]
        sources = [s.source.encode(errors="surrogateescape") for s in structures]
        arrays = {
            "atom_offsets": offsets_of([s.n_atoms for s in structures]),
            "edge_offsets": offsets_of([e.n_edges for e in edges]),
            "source_offsets": offsets_of([len(source) for source in sources]),
            "structures": rows,
            "numbers": _joined([s.numbers for s in structures], "u1"),
            "positions": _joined(
                [s.positions for s in structures], storage.float_type("positions"), 3
            ),
            "forces": _joined(forces, storage.float_type("forces"), 3),
            "senders": _widest([e.senders for e in edges], "u1"),
            "receivers": _widest([e.receivers for e in edges], "u1"),
            "shifts": _widest([e.shifts for e in edges], "i1", 3),
            "sources": _bytes(b"".join(sources)),
            **names,
            **_inputs(structures),
        }
        return _finished(arrays)


def join(parts: Sequence[tuple[Arrays, NDArray[np.int64]]]) -> dict[str, NDArray[Any]]:
    """The arrays of a shard that holds the rows [n] of each part, in order.

    Parts have their views (``with_views``) and the same types of floating-point fields.
    """
    runs = [(arrays, first, last) for arrays, rows in parts for first, last in runs_of(rows)]
    lengths = {
        name: np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.diff(a[name][i : j + 1]) for a, i, j in runs)]
        )
        for name in ("atom_offsets", "edge_offsets", "source_offsets")
    }

    def slices(name: str, offsets: str) -> list[NDArray[Any]]:
        return [a[name][a[offsets][i] : a[offsets][j]] for a, i, j in runs]

    rows = np.concatenate([a["structures"][i:j] for a, i, j in runs])
    index_type = _index_type(int(lengths["atom_offsets"].max(initial=1)))
    shifts = np.concatenate(slices("shifts", "edge_offsets"))
    arrays = {
        **{name: offsets_of(counts) for name, counts in lengths.items()},
        "structures": rows,
        **{name: np.concatenate(slices(name, "atom_offsets")) for name in OF_ATOMS},
        "senders": np.concatenate(slices("senders", "edge_offsets")).astype(index_type),
        "receivers": np.concatenate(slices("receivers", "edge_offsets")).astype(index_type),
        "shifts": shifts.astype(_little(_signed_type(shifts)), copy=False),
        "sources": np.concatenate(slices("sources", "source_offsets")),
    }
    for field in ("config_type", "head"):
        names = np.concatenate(
            [np.array(names_of(a, field))[a[field][i:j].astype(np.int64)] for a, i, j in runs]
        )
        arrays[f"{field}_names"], rows[field] = _named(names)
    if runs and "input_names" in runs[0][0]:
        arrays["input_names"] = np.asarray(runs[0][0]["input_names"])
        arrays["graph_inputs"] = np.concatenate([a["graph_inputs"][i:j] for a, i, j in runs])
        arrays["atom_inputs"] = np.concatenate(slices("atom_inputs", "atom_offsets"))
    return _finished(arrays)


def input_columns(arrays: Arrays) -> InputColumns | None:
    """The inputs of a shard's structures; None if it has none."""
    if "input_names" not in arrays:
        return None
    names = input_names_of(arrays["input_names"].tobytes())
    return InputColumns(names, arrays["graph_inputs"], arrays["atom_inputs"])


@cache
def input_names_of(text: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of inputs per structure, and per atom, from the JSON of a shard."""
    per_structure, per_atom = json.loads(text)
    return tuple(map(str, per_structure)), tuple(map(str, per_atom))


def names_of(arrays: Arrays, field: str) -> list[str]:
    """Names by index, of the ``field`` config_type or head."""
    names: list[str] = json.loads(arrays[f"{field}_names"].tobytes())
    return names


def runs_of(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of every run of consecutive numbers.

    >>> list(runs_of(np.array([4, 5, 6, 2, 3, 9])))
    [(4, 7), (2, 4), (9, 10)]
    """
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for run in np.split(rows, breaks) if len(rows) else ():
        yield int(run[0]), int(run[-1]) + 1


def checksums(arrays: Arrays, which: Iterable[int] | None = None) -> NDArray[np.uint32]:
    """[n] CRC-32 of the structures ``which`` (all), over their bytes in all arrays."""
    n = len(arrays["structures"])
    rows = np.arange(n + 1)
    cuts = [
        (_raw(array), ((arrays[offsets] if offsets else rows) * _width(array)).tolist())
        for array, offsets in ((arrays[name], offsets) for name, offsets in owned_arrays(arrays))
    ]
    crc32, found = zlib.crc32, []
    for i in range(n) if which is None else which:
        crc = 0
        for data, bounds in cuts:
            crc = crc32(data[bounds[i] : bounds[i + 1]], crc)
        found.append(crc)
    return np.array(found, dtype="<u4")


def owned_arrays(names: Container[str]) -> list[tuple[str, str]]:
    """(array, its offsets) of what a structure owns of the arrays ``names``, in the order of the
    checksum; the offsets of what has one row per structure are empty.
    """
    owned = [("structures", "")]
    owned += [(name, offsets) for offsets, of in OWNED.items() for name in of]
    owned += [("graph_inputs", ""), ("atom_inputs", "atom_offsets")]
    return [(name, offsets) for name, offsets in owned if name in names]


def _raw(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _width(array: NDArray[Any]) -> int:
    """Bytes of a row."""
    return array.dtype.itemsize * (array.shape[1] if array.ndim == 2 else 1)


def without_edges(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """The arrays without OF_EDGES; edge_offsets [n + 1] stay, checksums [n] are new."""
    kept = {name: array for name, array in arrays.items() if name not in OF_EDGES}
    return {**kept, "structure_checksums": checksums(kept)}


def _count_receivers(edges: EdgeList) -> int:
    """Atoms that receive an edge; receivers ascend."""
    return 0 if edges.n_edges == 0 else 1 + int(np.count_nonzero(np.diff(edges.receivers)))


def _rows(
    structures: Sequence[Structure], storage: Storage
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """``structures``, and the names of config_types and heads."""
    rows = np.zeros(len(structures), dtype=row_type(storage))
    for name in ("energy", "stress"):
        values = [getattr(s, name) for s in structures]
        rows[f"has_{name}"] = [value is not None for value in values]
        empty = 0.0 if name == "energy" else np.zeros((3, 3))
        if structures:
            rows[name] = [empty if value is None else value for value in values]
    if structures:
        rows["weights"] = [
            (s.weight, s.energy_weight, s.forces_weight, s.stress_weight) for s in structures
        ]
        rows["cell"] = [s.cell for s in structures]
        rows["pbc"] = [s.pbc for s in structures]
        rows["has_forces"] = [s.forces is not None for s in structures]
    names = {}
    for field in ("config_type", "head"):
        of_structures = np.array([getattr(s, field) for s in structures], dtype=str)
        names[f"{field}_names"], rows[field] = _named(of_structures)
    return rows, names


def _finished(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """``arrays`` with what is derived from them, in the order of LAYOUT."""
    arrays["elements"] = np.unique(arrays["numbers"])
    arrays["structure_checksums"] = checksums(arrays)
    return {name: arrays[name] for name in (*LAYOUT, *INPUT_LAYOUT) if name in arrays}


def _inputs(structures: Sequence[Structure]) -> dict[str, NDArray[Any]]:
    """The arrays of inputs, if the structures have any; all of them have the same."""
    first = structures[0].inputs if structures else NO_INPUTS
    names = [list(first.graph), list(first.atom)]
    if names == [[], []]:
        return {}
    graph = [[s.inputs.graph[name] for name in names[0]] for s in structures]
    atom = [np.stack([s.inputs.atom[n] for n in names[1]], axis=1) for s in structures if names[1]]
    n_atoms = sum(s.n_atoms for s in structures)
    return {
        "input_names": _bytes(json.dumps(names).encode()),
        "graph_inputs": np.array(graph, dtype="<f8").reshape(len(structures), len(names[0])),
        "atom_inputs": np.concatenate(atom).astype("<f8") if atom else np.zeros((n_atoms, 0)),
    }


def _named(values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Sorted distinct names as JSON bytes, and the index of each value."""
    names, index = np.unique(values, return_inverse=True)
    return _bytes(json.dumps(names.tolist()).encode()), index.reshape(-1).astype("<u4")


def _joined(parts: list[NDArray[Any]], dtype: str, *shape: int) -> NDArray[Any]:
    return np.concatenate(
        [np.zeros((0, *shape), dtype=dtype), *parts], dtype=dtype, casting="unsafe"
    )


def _widest(parts: list[NDArray[Any]], dtype: str, *shape: int) -> NDArray[Any]:
    """One little-endian array of the widest type among the parts."""
    joined = np.concatenate([np.zeros((0, *shape), dtype=dtype), *parts])
    return joined.astype(_little(joined.dtype), copy=False)


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def offsets_of(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1] where each part begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype("<i8")


def _bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, dtype=np.uint8)


def _index_type(n_atoms: int) -> np.dtype[Any]:
    return _little(np.min_scalar_type(n_atoms - 1))


def _signed_type(values: NDArray[Any]) -> np.dtype[Any]:
    """The smallest signed integer type that holds all of ``values``."""
    largest = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    return np.min_scalar_type(-largest - 1)
