"""Statistics of training data, from sums that merge exactly, and their file statistics.json.

Per structure i, x_i = (E_i - sum over its atoms of E0) / n_atoms_i in eV. Then

    mean_energy_per_atom = mean of x,   std_energy_per_atom = sqrt(sum (x - mean)^2 / (n - 1))
    rms_forces           = sqrt(mean of squared force components where there are forces), eV/Å
    avg_num_neighbors    = n_edges / number of atoms that have a neighbour

as in mace-torch 0.3.16 (whose std has 1e-6 added to n - 1, whose RMS counts missing forces as
zeros, and which includes labels of weight 0, left out here). Counts merge as integers; means and
sums of squared deviations by the update of Chan, Golub and LeVeque (1983), which is stable where
|mean| >> std, unlike sums of squares. One pass, O(atoms + edges).
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mace_train.atomic_files import write_text
from mace_train.data.labels import LabelKeyCounts
from mace_train.data.moments import Moments
from mace_train.data.shards.arrays import Arrays, names_of, offsets_of
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.values import FORCE, STRESS, check_labels, energy_range, has_weight
from mace_train.errors import InputError
from mace_train.json_files import converted, read_json
from mace_train.settings.inputs import ReadInput
from mace_train.settings.ranges import Range

FORMAT = "mace-train statistics"
FORMAT_VERSION = 2
FILE_NAME = "statistics.json"


@dataclass(frozen=True)
class StatisticsSums:
    """Sums over a set of structures for its statistics; ``+`` is the union of two sets."""

    n_structures: int = 0
    n_atoms: int = 0
    n_edges: int = 0
    n_atoms_with_neighbors: int = 0
    energies: Moments = field(default_factory=Moments)  # of x, eV
    n_force_components: int = 0
    squared_forces: float = 0.0  # (eV/Å)^2
    element_counts: Mapping[int, int] = field(default_factory=dict)  # atoms by atomic number

    def __add__(self, other: "StatisticsSums") -> "StatisticsSums":
        elements = sorted({*self.element_counts, *other.element_counts})
        return StatisticsSums(
            n_structures=self.n_structures + other.n_structures,
            n_atoms=self.n_atoms + other.n_atoms,
            n_edges=self.n_edges + other.n_edges,
            n_atoms_with_neighbors=self.n_atoms_with_neighbors + other.n_atoms_with_neighbors,
            energies=self.energies + other.energies,
            n_force_components=self.n_force_components + other.n_force_components,
            squared_forces=self.squared_forces + other.squared_forces,
            element_counts={
                z: self.element_counts.get(z, 0) + other.element_counts.get(z, 0) for z in elements
            },
        )

    @property
    def avg_num_neighbors(self) -> float:
        """Mean edges per atom, over the atoms that have any; 0 without edges."""
        return self.n_edges / max(self.n_atoms_with_neighbors, 1)

    @property
    def rms_forces(self) -> float:
        """Root mean square of the force components, eV/Å; 0 without forces."""
        return math.sqrt(self.squared_forces / max(self.n_force_components, 1))


SumsByHead = dict[str, StatisticsSums]


def sums_of_shard(arrays: Arrays, E0s: Mapping[str, Mapping[int, float]]) -> SumsByHead:
    """The sums over the structures of one shard by head; ``E0s`` holds its elements, eV."""
    n_atoms = np.diff(arrays["atom_offsets"])
    _check_labels(arrays, n_atoms)
    squares = np.sum(np.square(arrays["forces"], dtype=np.float64), axis=1)
    columns = {
        "n_atoms": n_atoms,
        "n_edges": np.diff(arrays["edge_offsets"]),
        "squared_forces": np.where(  # missing ones are zero
            counts_in(arrays, "forces"), _sums_of_parts(squares, arrays["atom_offsets"]), 0.0
        ),
    }
    return {
        name: _sums_of_head(arrays, columns, head, E0s[name])
        for head, name in enumerate(names_of(arrays, "head"))
    }


def counts_in(arrays: Arrays, label: str) -> NDArray[np.bool_]:
    """[n] which structures have the ``label`` (energy, forces or stress), with a weight."""
    column = 1 + ("energy", "forces", "stress").index(label)
    weights = arrays["weights"]
    return arrays[f"has_{label}"].astype(bool) & has_weight(weights[:, 0] * weights[:, column])


def _check_labels(arrays: Arrays, n_atoms: NDArray[np.int64]) -> None:
    """InputError that names the first structure whose labels are so large that sums overflow."""
    offsets, forces = arrays["atom_offsets"], arrays["forces"]
    usable = np.ones(len(n_atoms), dtype=bool)
    usable[~_within(arrays["energy"][:, None] / n_atoms[:, None], energy_range(1))] = False
    usable[np.repeat(np.arange(len(n_atoms)), n_atoms)[~_within(forces, FORCE)]] = False
    usable[~_within(arrays["stress"].reshape(-1, 9), STRESS)] = False
    for i in np.flatnonzero(~usable).tolist():
        first, last = arrays["source_offsets"][i : i + 2].tolist()
        check_labels(
            arrays["sources"][first:last].tobytes().decode(errors="surrogateescape"),
            int(n_atoms[i]),
            float(arrays["energy"][i]),
            forces[offsets[i] : offsets[i + 1]],
            arrays["stress"][i],
        )


def _within(values: NDArray[np.float64], limits: Range) -> NDArray[np.bool_]:
    """[n] whether all of values [n, k] are in the range; NaN is not."""
    return np.asarray(np.all(np.abs(values) <= limits.maximum, axis=1))


def _sums_of_head(
    arrays: Arrays, columns: Mapping[str, NDArray[Any]], head: int, E0s: Mapping[int, float]
) -> StatisticsSums:
    mine = arrays["head"] == head
    n_atoms = columns["n_atoms"]
    numbers = arrays["numbers"][np.repeat(mine, n_atoms)]
    counts = np.bincount(numbers, minlength=1)
    E0_of_element = np.zeros(len(counts))
    for element in np.flatnonzero(counts).tolist():
        E0_of_element[element] = E0s[element]
    baselines = _sums_of_parts(E0_of_element[numbers], offsets_of(n_atoms[mine]))
    per_atom = (arrays["energy"][mine] - baselines) / np.maximum(n_atoms[mine], 1)
    return StatisticsSums(
        n_structures=int(mine.sum()),
        n_atoms=len(numbers),
        n_edges=int(columns["n_edges"][mine].sum()),
        n_atoms_with_neighbors=int(arrays["n_atoms_with_neighbors"][mine].sum(dtype=np.int64)),
        energies=Moments.of(per_atom[counts_in(arrays, "energy")[mine]]),
        n_force_components=3 * int(n_atoms[mine & counts_in(arrays, "forces")].sum()),
        squared_forces=float(columns["squared_forces"][mine].sum()),
        element_counts={z: int(counts[z]) for z in np.flatnonzero(counts).tolist()},
    )


def merge(parts: Iterable[SumsByHead]) -> SumsByHead:
    """The sums over all parts, by head."""
    merged: SumsByHead = {}
    for part in parts:
        for head, sums in part.items():
            merged[head] = merged.get(head, StatisticsSums()) + sums
    return merged


def _sums_of_parts(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] sums of ``values`` between offsets [n + 1]; no part is empty."""
    return np.add.reduceat(values, offsets[:-1]) if len(values) else np.zeros(len(offsets) - 1)


def compositions(
    arrays: Arrays, elements: list[int], head: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Atoms of elements [n, n_elements] and energies [n] eV of one head, without weight 0."""
    column = np.zeros(256, dtype=np.int64)
    column[elements] = np.arange(len(elements))
    n_structures = len(arrays["energy"])
    rows = np.repeat(np.arange(n_structures), np.diff(arrays["atom_offsets"]))
    chosen = counts_in(arrays, "energy")
    if head is not None:
        names = names_of(arrays, "head")
        chosen &= np.array([name == head for name in names])[arrays["head"].astype(np.int64)]
    mine = chosen[rows]
    flat = rows[mine] * len(elements) + column[arrays["numbers"][mine]]
    counts = np.bincount(flat, minlength=n_structures * len(elements))
    matrix = counts.reshape(n_structures, len(elements)).astype(np.float64)
    return matrix[chosen], arrays["energy"][chosen]


@dataclass(frozen=True)
class SplitCounts:
    """Size and identity of one of train, valid and test."""

    n_structures: int
    n_atoms: int
    n_edges: int
    dataset_hash: str

    @classmethod
    def of(cls, shards: ShardSet) -> Self:
        """The counts of ``shards``."""
        return cls(
            n_structures=len(shards),
            n_atoms=int(shards.n_atoms.sum(dtype=np.int64)),
            n_edges=int(shards.n_edges.sum(dtype=np.int64)),
            dataset_hash=shards.dataset_hash,
        )


@dataclass(frozen=True)
class HeadStatistics:
    """The training structures of one head (level of theory)."""

    n_structures: int
    E0s: dict[int, float]  # eV, by atomic number
    E0s_source: str  # isolated, average, given or foundation
    mean_energy_per_atom: float  # of the interaction energy, eV
    std_energy_per_atom: float  # eV
    rms_forces: float  # eV/Å


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a model needs to know of its training data, and what the splits hold."""

    r_max: float  # Å
    atomic_numbers: list[int]  # sorted, of the training structures
    E0s: dict[int, float]  # eV, by atomic number; of the first head
    E0s_source: str  # isolated, average, given or foundation
    avg_num_neighbors: float
    mean_energy_per_atom: float  # of the interaction energy, eV
    std_energy_per_atom: float  # eV
    rms_forces: float  # eV/Å
    element_counts: dict[int, int]  # atoms of the training structures by atomic number
    splits: dict[str, SplitCounts]
    heads: dict[str, HeadStatistics]
    label_keys: dict[str, LabelKeyCounts] = field(default_factory=dict)
    """Structures by setting (such as train_file), head, label and key; older files have none."""
    inputs: dict[str, ReadInput] = field(default_factory=dict)
    """How inputs beside the geometry were read, by name; files without such have none."""

    @property
    def dataset_hash(self) -> str:
        """Identity of the training structures and their edges."""
        return self.splits["train"].dataset_hash

    def write(self, path: Path) -> None:
        """Write statistics.json."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        if not self.inputs:
            del content["inputs"]  # so that earlier versions read it
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read statistics.json.

        Raises:
            InputError: no such file, not one of ours, or of another format version.
        """
        remedy = "data_dir must be a folder written by `mace-train preprocess`; run it again"
        content = read_json(path, dict, remedy)
        if content.pop("format", None) != FORMAT:
            raise _not_statistics(path, "it is another file")
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, this mace-train reads version "
                f"{FORMAT_VERSION}; run preprocess again"
            )
        try:
            found: Self = converted(cls, content)
            found._check()
        except ValueError as error:
            raise _not_statistics(path, str(error)) from None
        return found

    def _check(self) -> None:
        """ValueError for numbers that no data has."""
        z = self.atomic_numbers
        if z != sorted(set(z)) or not z or not 1 <= z[0] <= z[-1] < len(chemical_symbols):
            raise ValueError(f"atomic_numbers={z} are not ascending atomic numbers")
        for name in ("avg_num_neighbors", "std_energy_per_atom", "rms_forces"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is below 0")
        if self.r_max <= 0:
            raise ValueError(f"r_max={self.r_max} is not above 0")
        if not self.heads or "train" not in self.splits:
            raise ValueError("heads or splits are missing")
        for split, counts in self.splits.items():
            if min(counts.n_structures, counts.n_atoms, counts.n_edges) < 0:
                raise ValueError(f"splits.{split} has a count below 0")
        for head, of_head in self.heads.items():
            if min(of_head.n_structures, of_head.std_energy_per_atom, of_head.rms_forces) < 0:
                raise ValueError(f"heads.{head} has a number below 0")
            missing = [chemical_symbols[n] for n in z if n not in of_head.E0s]
            if missing and self.element_counts and len(self.heads) == 1:
                raise ValueError(f"heads.{head}.E0s has none of {', '.join(missing)}")


def _not_statistics(path: Path, what: str) -> InputError:
    return InputError(f"{path} is no statistics of mace-train ({what}); run preprocess again")


E0sOfHeads = Mapping[str, tuple[Mapping[int, float], str]]


def statistics_of(splits: Mapping[str, ShardSet], E0s: E0sOfHeads) -> Statistics:
    """The statistics of ``splits["train"]``, with counts of all splits.

    Args:
        splits: By name.
        E0s: By head: E0s (eV by atomic number), and where they are from.
    """
    train = splits["train"]
    energies = {head: values for head, (values, _) in E0s.items()}
    parts = (sums_of_shard(train.arrays(k), energies) for k in range(train.n_shards))
    return statistics_from(merge(parts), splits, E0s)


def statistics_from(
    by_head: SumsByHead, splits: Mapping[str, ShardSet], E0s: E0sOfHeads
) -> Statistics:
    """``statistics_of`` from sums that are known."""
    train = splits["train"]
    sums = sum((by_head[head] for head in sorted(by_head)), StatisticsSums())
    heads = {
        head: HeadStatistics(
            n_structures=by_head[head].n_structures,
            E0s=dict(E0s[head][0]),
            E0s_source=E0s[head][1],
            mean_energy_per_atom=by_head[head].energies.mean,
            std_energy_per_atom=by_head[head].energies.std,
            rms_forces=by_head[head].rms_forces,
        )
        for head in sorted(by_head)
    }
    first = next(iter(heads.values()))
    return Statistics(
        r_max=train.r_max,
        atomic_numbers=list(train.elements),
        E0s=first.E0s,
        E0s_source=first.E0s_source,
        avg_num_neighbors=sums.avg_num_neighbors,
        mean_energy_per_atom=sums.energies.mean,
        std_energy_per_atom=sums.energies.std,
        rms_forces=sums.rms_forces,
        element_counts=dict(sums.element_counts),
        splits={name: SplitCounts.of(shards) for name, shards in splits.items()},
        heads=heads,
    )


def split_statistics(data_dir: Path, name: str) -> SplitCounts:
    """What statistics.json holds of one split of a preprocessed folder.

    Raises:
        InputError: no such split, or no statistics that can be read.
    """
    splits = Statistics.read(data_dir / FILE_NAME).splits
    if name not in splits:
        raise InputError(f"{data_dir} has no {name}/; it holds {', '.join(sorted(splits))}")
    return splits[name]


def open_split(data_dir: Path, name: str) -> ShardSet:
    """The shards of one split of a preprocessed folder, compared with statistics.json.

    Raises:
        InputError: no such split, or shards that are missing or not those preprocess wrote.
    """
    written = split_statistics(data_dir, name)
    shards = ShardSet(data_dir / name)
    if SplitCounts.of(shards) != written:
        raise InputError(
            f"{data_dir / name} holds {len(shards)} structures with hash "
            f"{shards.dataset_hash[:12]}, statistics.json says {written.n_structures} with "
            f"{written.dataset_hash[:12]}; shards are missing or replaced, preprocess again"
        )
    return shards
