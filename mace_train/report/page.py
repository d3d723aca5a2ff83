"""The page of a report: its contents as text and numbers, and the HTML made from them."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mace_train import __version__
from mace_train.evaluate.compare import flat
from mace_train.report.error_tables import Errors, Row, WorstStructure, number
from mace_train.report.pictures import Picture
from mace_train.report.plots import phase_seconds
from mace_train.report.run_folder import BinFill, RunFolder

# attribute of a Row -> heading, unit, factor
COLUMNS = {
    "energy_rmse": ("Energy RMSE", "meV/atom", 1000.0),
    "energy_mae": ("Energy MAE", "meV/atom", 1000.0),
    "forces_rmse": ("Force RMSE", "meV/Å", 1000.0),
    "forces_mae": ("Force MAE", "meV/Å", 1000.0),
    "forces_relative": ("Force RMSE / RMS", "%", 100.0),
    "stress_rmse": ("Stress RMSE", "meV/Å³", 1000.0),
}


@dataclass(frozen=True)
class ErrorSection:
    """Errors on one set of structures."""

    errors: Errors
    parity: list[Picture]
    distribution: list[Picture]
    maps: list[Picture]
    worst_forces: list[WorstStructure]
    worst_energy: list[WorstStructure]

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """(heading, rows) of the table of errors."""
        errors = self.errors
        heads = errors.by("head")
        groups = [
            ("", [errors.all()]),
            ("head", heads if len(heads) > 1 else []),
            ("config_type", errors.by("config_type")),
            ("element", errors.by_element()),
            ("number of atoms", errors.by_size()),
        ]
        return [(heading, rows) for heading, rows in groups if rows]

    @property
    def columns(self) -> dict[str, tuple[str, str, float]]:
        """The columns that hold a number."""
        all_errors = self.errors.all()
        return {k: v for k, v in COLUMNS.items() if getattr(all_errors, k) is not None}


@dataclass(frozen=True)
class Page:
    """Contents of the page."""

    run: RunFolder
    sections: list[ErrorSection]
    learning: list[Picture]
    balance: list[Picture]
    time: list[Picture]
    fill: BinFill | None

    @property
    def pictures(self) -> list[Picture]:
        """All figures."""
        of_errors = (s.parity + s.distribution + s.maps for s in self.sections)
        return [*self.learning, *chain.from_iterable(of_errors), *self.balance, *self.time]


def rendered(page: Page) -> str:
    """The page as HTML, everything escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "value": _value}
    run = page.run
    return environment.get_template("page.html").render(
        page=page,
        run=run,
        facts=_facts(run),
        cards=_cards(page),
        time_table=_time_table(run),
        balance_table=_balance_table(page),
        changed=run.changed_settings(),
        all_settings=flat(run.settings),
        session=run.sessions[-1] if run.sessions else None,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def _value(value: Any) -> str:
    """A setting as typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Such as 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _facts(run: RunFolder) -> str:
    """One sentence about what was trained on what."""
    model, data = run.header["model_settings"], run.header["model_data"]
    irreps = "+".join(
        f"{model['num_channels']}x{degree}{'eo'[degree % 2]}"
        for degree in range(model["max_L"] + 1)
    )
    elements = ", ".join(chemical_symbols[z] for z in data["atomic_numbers"])
    last = run.epochs[-1]
    ranks = run.sessions[-1].get("ranks", 1) if run.sessions else 1
    return (
        f"{model['model']} with {irreps}, {model['num_interactions']} layers and a cutoff of "
        f"{data['r_max']:g} Å: {run.n_weights:,} weights, trained on {last['structures']:,} "
        f"structures of {elements} for {len(run.epochs)} "
        f"{'epoch' if len(run.epochs) == 1 else 'epochs'} in {duration(last['total_s'])} "
        f"on {ranks} {'rank' if ranks == 1 else 'ranks'}."
    )


def _cards(page: Page) -> list[tuple[str, str, str]]:
    """(what, number, unit) of the numbers to see first."""
    run, cards = page.run, []
    if page.sections:
        row = page.sections[0].errors.all()
        cards = [
            (heading, number(factor * getattr(row, key)), unit)
            for key, (heading, unit, factor) in COLUMNS.items()
            if key.endswith("rmse") and getattr(row, key) is not None
        ]
    epochs = run.epochs
    rate = sum(r["structures"] for r in epochs) / max(sum(r["epoch_s"] for r in epochs), 1e-9)
    cards.append(("Best epoch", f"{run.best['epoch'] + 1}", f"of {len(epochs)}"))
    cards.append(("Speed", number(rate), "structures/s"))
    stragglers = [r["straggler"] for r in epochs if r.get("straggler") is not None]
    if stragglers:
        cards.append(("Straggler ratio", f"{sum(stragglers) / len(stragglers):.3f}", ""))
    return cards


def _time_table(run: RunFolder) -> list[tuple[str, float, float]]:
    """(phase, seconds over all epochs, share of the time)."""
    phases = phase_seconds(run.epochs)
    total = sum(float(seconds.sum()) for seconds in phases.values()) or 1.0
    return [(name, float(s.sum()), float(s.sum()) / total) for name, s in phases.items()]


def _balance_table(page: Page) -> list[tuple[str, str]]:
    """(name, value) about the balance over all epochs and the plan of the last one."""
    fill, records = page.fill, page.run.epochs
    measured = [r["straggler"] for r in records if r.get("straggler") is not None]
    predicted = [r["imbalance"] for r in records if r.get("imbalance") is not None]
    rows = []
    if predicted:
        rows.append(("straggler ratio, predicted", f"{sum(predicted) / len(predicted):.4f}"))
    if measured:
        rows.append(("straggler ratio, measured", f"{sum(measured) / len(measured):.4f}"))
    if fill is not None:
        rows += [
            ("least predicted, last epoch", f"{fill.plan.least_straggler:.4f}"),
            ("steps of an epoch", f"{fill.plan.n_steps:,}"),
            ("ranks", f"{fill.plan.world_size:,}"),
            ("capacity of a bin, atoms", f"{fill.capacity.max_atoms:,}"),
            ("capacity of a bin, edges", f"{fill.capacity.max_edges:,}"),
            ("mean fill, atoms", f"{fill.atoms.mean():.1%}"),
            ("mean fill, edges", f"{fill.edges.mean():.1%}"),
            ("structures of a bin, mean", f"{fill.plan.n_structures.mean():.2f}"),
        ]
    return rows
