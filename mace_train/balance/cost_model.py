"""Time and memory of a training step as linear functions of its atoms and edges, fitted.

    seconds = fixed_s + atom_s n_atoms + edge_s n_edges        (one rank, without communication)
    bytes   = fixed_bytes + atom_bytes n_atoms + edge_bytes n_edges

``scripts/measure_costs.py`` measures steps of a model on a device and writes the JSON file that
``batching.cost_model`` names. Coefficients are never negative: a fit to noisy timings must not
reward large bins.
"""

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mace_train.atomic_files import write_text
from mace_train.balance.costs import EDGES_PER_ATOM, MEMORY_UNIT, Costs
from mace_train.errors import InputError
from mace_train.json_files import converted, read_json
from mace_train.settings import BatchingSettings

Floats = NDArray[np.float64]

MOST_COST = 1e15  # s or bytes, of one step or one atom: more overflows integers of the planner


@dataclass(frozen=True)
class LinearCosts:
    """Costs ``fixed + per_atom n_atoms + per_edge n_edges``: a time (s) or a memory (bytes)."""

    fixed: float
    per_atom: float
    per_edge: float

    def of(self, n_atoms: ArrayLike, n_edges: ArrayLike) -> Floats:
        """[n] costs of bins with so many atoms [n] and edges [n]."""
        atoms, edges = np.asarray(n_atoms, np.float64), np.asarray(n_edges, np.float64)
        return np.asarray(self.fixed + self.per_atom * atoms + self.per_edge * edges)


def fit_linear_costs(
    n_atoms: ArrayLike, n_edges: ArrayLike, values: ArrayLike, *, relative: bool = False
) -> LinearCosts:
    """The non-negative coefficients with the least sum of squared errors.

    Takes atoms, edges and measured costs of n >= 3 bins, each [n]. ``relative`` divides each error
    by its value, so that small bins count as much as large ones. Raises ``InputError`` for fewer
    than three measurements, or one that is not positive.
    """
    values = np.asarray(values, np.float64)
    terms = np.stack([np.ones(len(values)), np.asarray(n_atoms), np.asarray(n_edges)], axis=1)
    if len(values) < 3 or not (values > 0).all():
        raise InputError("a cost model needs at least three measurements, all of them positive")
    unit = values if relative else np.full(len(values), values.mean())
    terms, target = terms / unit[:, None], values / unit
    scale = np.abs(terms).max(axis=0)
    scale[scale == 0] = 1.0
    best, least = np.zeros(3), np.inf
    # the optimum is the plain least-squares fit of the terms whose coefficient in it is above zero
    for n_used in (3, 2, 1):
        for used in map(list, combinations(range(3), n_used)):
            found, *_ = np.linalg.lstsq(terms[:, used] / scale[used], target)
            error = float(((terms[:, used] / scale[used] @ found - target) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(3), error
                best[used] = found / scale[used]
    return LinearCosts(*best.tolist())


@dataclass(frozen=True)
class CostModel:
    """Coefficients of one model on one device."""

    fixed_s: float
    atom_s: float
    edge_s: float
    fixed_bytes: float = 0.0
    atom_bytes: float = 0.0
    edge_bytes: float = 0.0
    residual: float = 0.0
    """Relative RMS deviation of the measured times from the fitted ones."""
    source: str = "assumed"
    """What was measured, human-readable."""

    def seconds(self, n_atoms: ArrayLike, n_edges: ArrayLike) -> Floats:
        """Time of bins, s."""
        return LinearCosts(self.fixed_s, self.atom_s, self.edge_s).of(n_atoms, n_edges)

    @property
    def edges_per_atom(self) -> int:
        """So many edges take as long as one atom without its edges, at least 1."""
        if self.edge_s == 0:
            return EDGES_PER_ATOM**3  # edges are free
        return max(1, min(EDGES_PER_ATOM**3, round(self.atom_s / self.edge_s)))


def fit_times(n_atoms: ArrayLike, n_edges: ArrayLike, seconds: ArrayLike) -> CostModel:
    """The least-squares fit of relative errors; coefficients that would be negative are zero.

    Raises ``InputError`` for fewer than three measurements or times that are not positive.
    """
    times = np.asarray(seconds, np.float64)
    fit = fit_linear_costs(n_atoms, n_edges, times, relative=True)
    residual = float(np.sqrt(np.mean((fit.of(n_atoms, n_edges) / times - 1) ** 2)))
    return CostModel(fit.fixed, fit.per_atom, fit.per_edge, residual=residual, source="fitted")


def fit_memory(
    model: CostModel, n_atoms: ArrayLike, n_edges: ArrayLike, peak: ArrayLike
) -> CostModel:
    """The model with its memory fitted to measured peaks [n], bytes; raises as ``fit_times``."""
    fit = fit_linear_costs(n_atoms, n_edges, peak, relative=True)
    return replace(model, fixed_bytes=fit.fixed, atom_bytes=fit.per_atom, edge_bytes=fit.per_edge)


def write_cost_model(path: Path, model: CostModel) -> None:
    """Write the JSON file that ``read_cost_model`` reads."""
    write_text(path, json.dumps(asdict(model), indent=2) + "\n")


_OPTIONAL = [field.name for field in fields(CostModel) if field.default is not MISSING]


def read_cost_model(path: str) -> CostModel:
    """The model of a file; ``InputError`` when it is not one."""
    remedy = "scripts/measure_costs.py writes such a file"
    try:
        model: CostModel = converted(CostModel, read_json(Path(path), dict, remedy))
    except ValueError as error:
        raise InputError(
            f"batching.cost_model={path} must hold fixed_s, atom_s, edge_s and may hold "
            f"{', '.join(_OPTIONAL)}, but {error}; {remedy}"
        ) from None
    for name, value in asdict(model).items():
        if name != "source" and not 0 <= value <= MOST_COST:
            raise InputError(
                f"batching.cost_model={path}: {name}={value} must be at least 0 and at most "
                f"{MOST_COST:g} (seconds and bytes); {remedy}"
            )
    return model


def with_cost_model(costs: Costs, settings: BatchingSettings) -> Costs:
    """The costs with the weights and, where it is limited, the memory of the named model.

    Raises ``InputError`` for a bad file.
    """
    if settings.cost_model is None:
        return costs
    model = read_cost_model(settings.cost_model)
    memory, fixed = None, 0
    if settings.max_memory_gb is not None:
        total = model.atom_bytes * costs.n_atoms + model.edge_bytes * costs.n_edges
        memory = np.ceil(total / MEMORY_UNIT).astype(np.int64)
        fixed = math.ceil(model.fixed_bytes / MEMORY_UNIT)
    return replace(costs, memory=memory, step_memory=fixed, edges_per_atom=model.edges_per_atom)
