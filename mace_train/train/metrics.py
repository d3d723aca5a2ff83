"""Errors as mergeable sums: one code for validation, testing and every number of ranks.

Each row (all structures, one head, one config_type, one element) and quantity keeps four float64
sums over components: count, |error|, error^2 and reference^2. Sums add over batches and ranks, so
an RMSE does not depend on how structures were batched and no structure counts twice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.model.derivatives import Prediction

QUANTITIES = {
    "energy": "eV_per_atom",
    "forces": "eV_per_A",
    "stress": "eV_per_A3",
}


class ErrorSums:
    """Sums of errors for rows ``all``, heads if several, config_types, elements (forces only)."""

    def __init__(
        self,
        config_types: list[str],
        atomic_numbers: tuple[int, ...],
        device: torch.device | None = None,
        heads: Sequence[str] = (),
    ) -> None:
        of_heads = [f"head {name}" for name in heads] if len(heads) > 1 else []
        self.n_heads = len(of_heads)
        self.config_types = config_types
        elements = [f"element {chemical_symbols[z]}" for z in atomic_numbers]
        of_types = [f"config_type {name}" for name in config_types]
        self.rows = ["all", *of_heads, *of_types, *elements]
        shape = (len(self.rows), len(QUANTITIES), 4)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, prediction: Prediction, graph: Graph, config_type_of_graph: Tensor) -> None:
        """Add one batch; ``config_type_of_graph`` [n_graphs] indexes config_types."""
        n_atoms = graph.n_atoms_of_graph.to(torch.float64)[:, None]
        rows = [torch.zeros_like(graph.heads), 1 + self.n_heads + config_type_of_graph]
        if self.n_heads:
            rows.append(1 + graph.heads)
        self._add(
            "energy",
            (prediction.energy[:, None] / n_atoms, graph.energy[:, None] / n_atoms),
            graph.has_energy,
            rows,
        )
        assert prediction.forces is not None
        row_of_element = 1 + self.n_heads + len(self.config_types) + graph.elements
        self._add(
            "forces",
            (prediction.forces, graph.forces),
            graph.has_forces[graph.graph_of_atom],
            [*(row[graph.graph_of_atom] for row in rows), row_of_element],
        )
        if prediction.stress is not None:
            self._add(
                "stress",
                (prediction.stress.flatten(1), graph.stress.flatten(1)),
                graph.has_stress,
                rows,
                counted=graph.stress_mask.flatten(1),
            )

    def _add(
        self,
        quantity: str,
        values: tuple[Tensor, Tensor],
        mask: Tensor,
        row_sets: list[Tensor],
        counted: Tensor | None = None,
    ) -> None:
        """Add components [n, k] of (predicted, reference) to each of the row sets [n].

        ``counted`` [n, k] are those that are defined; the others are zero in both.
        """
        predicted, reference = (value.detach().to(torch.float64) for value in values)
        error = predicted - reference
        ones = torch.ones_like(error) if counted is None else counted.to(torch.float64)
        terms = (ones, error.abs(), error**2, reference**2)
        sums = torch.stack([term.sum(1) for term in terms], dim=1)[mask]  # [n_labelled, 4]
        column = list(QUANTITIES).index(quantity)
        for rows in row_sets:
            self.sums[:, column].index_add_(0, rows[mask], sums)

    def table(self) -> list[dict[str, Any]]:
        """One dict a row: name, and RMSE, MAE, reference RMS per quantity that has labels."""
        table = []
        for name, sums in zip(self.rows, self.sums.cpu(), strict=True):
            row: dict[str, Any] = {"name": name}
            for (quantity, unit), (count, absolute, square, reference) in zip(
                QUANTITIES.items(), sums.tolist(), strict=True
            ):
                if count == 0:
                    continue
                row[f"{quantity}_rmse_{unit}"] = (square / count) ** 0.5
                row[f"{quantity}_mae_{unit}"] = absolute / count
                row[f"{quantity}_count"] = int(count)
                if quantity != "energy":  # total energies have an arbitrary zero
                    row[f"{quantity}_rms_reference_{unit}"] = (reference / count) ** 0.5
            if len(row) > 1:
                table.append(row)
        return table
