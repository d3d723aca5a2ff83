"""``mace-train inspect DIR``: print, plot and verify a folder of shards.

One pass over all shards: every byte is compared with the checksums, and sizes, edges per atom,
energies per atom, norms of forces and elements are counted. Memory: one shard and 8 bytes per
structure and atom for the plot.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from mace_train.atomic_files import replaced
from mace_train.console import Console
from mace_train.data.labels import LabelCounts, LabelKeyCounts, keys_in_words
from mace_train.data.shards.arrays import Arrays, input_columns, names_of
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import FILE_NAME, Statistics, open_split
from mace_train.folders import existing_folder, make_folder
from mace_train.settings import InspectSettings

matplotlib.use("Agg")
PERCENTILES = (0, 5, 50, 95, 100)


@dataclass
class Contents:
    """Contents of one split."""

    columns: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    elements: Counter[int] = field(default_factory=Counter)  # atoms
    heads: Counter[str] = field(default_factory=Counter)
    config_types: Counter[str] = field(default_factory=Counter)
    labels: LabelCounts = field(default_factory=LabelCounts)

    def add(self, arrays: Arrays) -> None:
        """Add one shard."""
        n_atoms = np.diff(arrays["atom_offsets"])
        has_energy, has_forces = (arrays[f"has_{x}"].astype(bool) for x in ("energy", "forces"))
        norms = np.linalg.norm(arrays["forces"].astype(np.float64), axis=1)
        edges = np.diff(arrays["edge_offsets"])
        new = {
            "atoms": n_atoms,
            "edges per atom": edges / n_atoms,
            "energy per atom, eV": (arrays["energy"] / n_atoms)[has_energy],
            "force, eV/Å": norms[np.repeat(has_forces, n_atoms)],
        }
        inputs = input_columns(arrays)
        if inputs is not None:
            for names, columns in zip(inputs.names, (inputs.graph, inputs.atom), strict=True):
                new |= {f"input {name}": columns[:, i] for i, name in enumerate(names)}
        for name, values in new.items():
            self.columns.setdefault(name, []).append(values.astype(np.float32))
        self.elements.update(_counted(arrays["numbers"]))
        for field_name, counter in (("head", self.heads), ("config_type", self.config_types)):
            known = names_of(arrays, field_name)
            counter.update({known[i]: n for i, n in _counted(arrays[field_name]).items()})
        self.labels = self.labels + LabelCounts.of_shards([arrays])

    def values(self, name: str) -> NDArray[np.float32]:
        """[n] all values of one column."""
        return np.concatenate(self.columns[name])


def _counted(values: NDArray[Any]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def inspect(settings: InspectSettings) -> dict[str, Contents]:
    """Print and plot what the folder holds; the contents by split.

    Raises:
        InputError: no shards, or one that is not what was written.
    """
    folder, console = existing_folder("data_dir", settings.data_dir), Console(width=100)
    found: dict[str, Contents] = {}
    for name, shards in _splits(folder):
        contents = found[name] = Contents()
        for k in track(range(shards.n_shards), f"reading {name}", transient=True):
            if settings.verify:
                shards.verify_shard(k)
            contents.add(shards.arrays(k))
        _print(console, name, shards, contents)
    for name, counts in _label_keys(folder).items():
        console.print(f"labels by key, {name}: {keys_in_words(counts)}", highlight=False)
    if settings.verify:
        console.print(f"checksums of {len(found)} splits: ok")
    output = folder if settings.output is None else Path(settings.output)
    if settings.plots:
        make_folder("output", output)
        path = output / "inspect.png"
        _plot(found, path)
        console.print(f"plot: {path}")
    return found


def _splits(folder: Path) -> Iterator[tuple[str, ShardSet]]:
    """The splits of a preprocessed folder, or the shards of a plain one."""
    if not (folder / FILE_NAME).exists():
        yield folder.name, ShardSet(folder)
        return
    for name in Statistics.read(folder / FILE_NAME).splits:
        yield name, open_split(folder, name)


def _label_keys(folder: Path) -> dict[str, LabelKeyCounts]:
    """Of a preprocessed folder; the shards do not hold them."""
    path = folder / FILE_NAME
    return Statistics.read(path).label_keys if path.exists() else {}


def _print(console: Console, name: str, shards: ShardSet, contents: Contents) -> None:
    header = shards.headers[0]
    bytes_ = sum(h.path.stat().st_size for h in shards.headers)
    console.print(
        f"{name}: {len(shards)} structures in {shards.n_shards} shards, "
        f"{bytes_ / 1e6:.1f} MB, r_max {shards.r_max} Å, edges "
        f"{'stored' if header.stores_edges else 'found when read'}"
    )
    table = Table()
    table.add_column("per structure, per atom")
    for percentile in PERCENTILES:
        table.add_column(f"{percentile} %", justify="right")
    for column in contents.columns:
        values = contents.values(column)
        shown: list[float] = np.percentile(values, PERCENTILES).tolist() if len(values) else []
        table.add_row(column, *(f"{value:.4g}" for value in shown))
    console.print(table)
    console.print(contents.labels.summary())
    console.print(f"hash {shards.dataset_hash}")
    symbols = {chemical_symbols[z]: n for z, n in sorted(contents.elements.items())}
    for what, counts in (
        ("atoms by element", symbols),
        ("structures by head", contents.heads),
        ("structures by config_type", dict(contents.config_types.most_common(12))),
    ):
        console.print(f"{what}: {json.dumps(counts, ensure_ascii=False)[1:-1]}")


def _plot(found: dict[str, Contents], path: Path) -> None:
    """Histograms of every column, and atoms by element."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(20, 4), layout="constrained")
    names = list(next(iter(found.values())).columns)
    for axis, name in zip(axes[:-1], names, strict=False):
        values = {split: contents.values(name) for split, contents in found.items()}
        together = np.concatenate([*values.values()])
        bins = np.histogram_bin_edges(together, bins=60) if len(together) else 10
        for split, of_split in values.items():
            axis.hist(of_split, bins=bins, histtype="step", label=f"{split} ({len(of_split)})")
        axis.set(xlabel=name, yscale="log")
    axes[0].set_ylabel("structures (last two: atoms)")
    axes[0].legend(frameon=False)
    total = sum((contents.elements for contents in found.values()), Counter())
    elements = sorted(total)
    axes[-1].bar(range(len(elements)), [total[z] for z in elements])
    step = max(1, len(elements) // 20)
    axes[-1].set_xticks(range(0, len(elements), step))
    axes[-1].set_xticklabels([chemical_symbols[z] for z in elements[::step]])
    axes[-1].set(xlabel="element", yscale="log", ylabel="atoms")
    try:
        with replaced(path) as temporary:
            figure.savefig(temporary, dpi=120)
    finally:
        plt.close(figure)
