"""Output of ``mace-train evaluate``: errors.json, errors.txt, parity.png, predictions.extxyz."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write as ase_write
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from mace_train.atomic_files import written_together
from mace_train.console import Console
from mace_train.data.labelled_atoms import labelled_atoms
from mace_train.data.loading.loader import SampleSource
from mace_train.data.stress_components import stress_mask
from mace_train.data.structure import Structure
from mace_train.evaluate.parity_plot import (
    Predicted,
    draw_parity,
    energy_pairs,
    force_pairs,
    stress_pairs,
)
from mace_train.model.mace import ModelData
from mace_train.settings import EvaluateSettings

LOGGER = logging.getLogger("mace_train")

# column of the text table -> (key in a row of the error table, factor)
COLUMNS = {
    "RMSE E\nmeV/atom": ("energy_rmse_eV_per_atom", 1000.0),
    "MAE E\nmeV/atom": ("energy_mae_eV_per_atom", 1000.0),
    "RMSE F\nmeV/Å": ("forces_rmse_eV_per_A", 1000.0),
    "MAE F\nmeV/Å": ("forces_mae_eV_per_A", 1000.0),
    "RMS of F\nmeV/Å": ("forces_rms_reference_eV_per_A", 1000.0),
    "RMSE stress\nmeV/Å^3": ("stress_rmse_eV_per_A3", 1000.0),
    "MAE stress\nmeV/Å^3": ("stress_mae_eV_per_A3", 1000.0),
}


def write_report(
    table: list[dict[str, Any]],
    predicted: dict[int, Predicted],
    source: SampleSource,
    heads: NDArray[np.int64],
    settings: EvaluateSettings,
    model: ModelData,
) -> None:
    """Write the report to ``settings.output`` and print the table; ``heads`` [n_structures]."""
    output = Path(settings.output)
    origin = (
        settings.test_file if settings.data_dir is None else f"{settings.data_dir}/{settings.split}"
    )
    record = {
        "checkpoint": settings.checkpoint,
        "data": origin,
        "n_structures": len(source),
        "errors": table,
    }
    title = f"{settings.checkpoint} on {origin}: {len(source)} structures"
    text = error_table(table, title) if table else f"{title}, none of them with a label"
    with written_together(output) as new:
        (new / "errors.json").write_text(json.dumps(record, indent=1) + "\n")
        with open(new / "errors.txt", "w") as handle:
            Console(file=handle, width=140).print(text, soft_wrap=not table)
        console = Console()
        # a narrow terminal wraps lines rather than losing words
        console.width = max(console.width, 100)
        console.print(text, soft_wrap=not table)
        written = ["errors.json", "errors.txt"]
        structures = [source.sample(i).structure for i in range(len(source))]
        if settings.plots and table:
            E0s = _energies_of_atoms(structures, heads, model)
            figure = parity_figure(structures, predicted, table, E0s)
            figure.savefig(new / "parity.png", dpi=150)
            written.append("parity.png")
        if settings.predictions:
            atoms = [_atoms(structure, predicted[i]) for i, structure in enumerate(structures)]
            ase_write(new / "predictions.extxyz", atoms, format="extxyz", write_results=False)
            written.append("predictions.extxyz")
    LOGGER.info("wrote %s to %s", ", ".join(written), output)


def _energies_of_atoms(
    structures: list[Structure], heads: NDArray[np.int64], model: ModelData
) -> NDArray[np.float64]:
    """[n] sums of E0s over the atoms of every structure, eV."""
    tables = [dict(zip(model.atomic_numbers, head.E0s, strict=True)) for head in model.heads]
    return np.array(
        [
            sum(tables[head][z] for z in structure.numbers.tolist())
            for head, structure in zip(heads.tolist(), structures, strict=True)
        ]
    )


def error_table(table: list[dict[str, Any]], title: str) -> Table:
    """The errors as a rich table, one row per config_type and element."""
    columns = {k: v for k, v in COLUMNS.items() if any(v[0] in row for row in table)}
    shown = Table(title=title, title_justify="left")
    shown.add_column("", no_wrap=True)
    for heading in columns:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table:
        cells = [
            f"{factor * row[key]:.2f}" if key in row else "" for key, factor in columns.values()
        ]
        name = row["name"].removeprefix("config_type ")
        shown.add_row(name, *cells, end_section=name == "all")
    return shown


def parity_figure(
    structures: list[Structure],
    predicted: dict[int, Predicted],
    table: list[dict[str, Any]],
    E0s: NDArray[np.float64],
) -> Figure:
    """Predicted against reference: energy per atom, force components, stress components.

    ``E0s`` [n_structures] are the summed energies of the isolated atoms, eV.
    """
    energies = energy_pairs(structures, predicted, E0s)
    panels = [
        ("energy", "energy per atom,\nrelative to isolated atoms (eV)", energies),
        ("forces", "force components (eV/Å)", force_pairs(structures, predicted)),
        ("stress", "stress components (eV/Å³)", stress_pairs(structures, predicted)),
    ]
    panels = [panel for panel in panels if len(panel[2]) > 0]
    figure = Figure(figsize=(5.0 * max(len(panels), 1), 4.6), layout="constrained")
    for i, (quantity, label, pairs) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        key = next(k for k in table[0] if k.startswith(f"{quantity}_rmse_"))
        unit = key.removeprefix(f"{quantity}_rmse_").replace("_per_", "/").replace("A3", "Å³")
        unit = unit.replace("eV/A", "eV/Å")
        title = f"{quantity}: RMSE {1000 * table[0][key]:.3g} m{unit}"
        drawn = draw_parity(axes, pairs, f"reference {label}")
        axes.set_title(title)
        figure.colorbar(drawn, ax=axes, label="points nearby")
    return figure


def _atoms(structure: Structure, predicted: Predicted) -> Atoms:
    """Reference labels as REF_*, predictions as MACE_* (the names mace_eval_configs writes)."""
    atoms = labelled_atoms(structure)
    atoms.info["MACE_energy"] = predicted.energy
    atoms.arrays["MACE_forces"] = predicted.forces
    if stress_mask(structure.cell, structure.pbc).any():
        atoms.info["MACE_stress"] = predicted.stress
    return atoms
