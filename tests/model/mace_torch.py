"""Building and calling models of mace-torch; imports it only inside of functions."""

import os
import warnings
from typing import Any

import numpy as np
import torch

from mace_train.data.graph import Graph


def import_mace() -> Any:
    """The package mace.modules, or ImportError; leaves warnings and environment as they were."""
    before = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mace import modules
    finally:
        if before is None:
            os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        else:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = before
    return modules


def mace_torch_model(
    atomic_numbers: tuple[int, ...],
    *,
    flavour: str = "ScaleShiftMACE",
    seed: int = 0,
    channels: int = 4,
    max_L: int = 1,
    **changes: Any,
) -> torch.nn.Module:
    """A float64 model as mace_run_train builds it for --model=flavour, with random weights."""
    modules = import_mace()
    from e3nn import o3

    blocks = modules.interaction_classes
    agnostic = flavour == "MACE"
    first = f"RealAgnostic{'' if agnostic else 'Residual'}InteractionBlock"
    hidden = "+".join(f"{channels}x{degree}{'oe'[degree % 2 == 0]}" for degree in range(max_L + 1))
    arguments = {
        "r_max": 4.0,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 3,
        "interaction_cls": blocks["RealAgnosticResidualInteractionBlock"],
        "interaction_cls_first": blocks[first],
        "num_interactions": 2,
        "num_elements": len(atomic_numbers),
        "hidden_irreps": o3.Irreps(hidden),
        "MLP_irreps": o3.Irreps("5x0e"),
        "atomic_energies": np.array([[-10.0 * z for z in atomic_numbers]]),
        "avg_num_neighbors": 7.3,
        "atomic_numbers": list(atomic_numbers),
        "correlation": 3,
        "gate": torch.nn.functional.silu,
        "radial_MLP": [8, 8],
        "heads": ["Default"],
        "use_reduced_cg": False,
        "atomic_inter_scale": [0.8],
        "atomic_inter_shift": [0.0 if agnostic else 0.1],
        **changes,
    }
    default = torch.get_default_dtype()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float64)
        try:
            return modules.ScaleShiftMACE(**arguments)
        finally:
            torch.set_default_dtype(default)


def mace_torch_batch(graph: Graph, n_elements: int) -> dict[str, torch.Tensor]:
    """The dictionary that mace-torch's forward takes, from our graph."""
    ends = graph.n_atoms_of_graph.cumsum(0)
    cell = torch.where(graph.pbc.any(1)[:, None, None], graph.cell, 100.0 * torch.eye(3).double())
    return {
        "positions": graph.positions.clone(),
        "node_attrs": torch.nn.functional.one_hot(graph.elements, n_elements).double(),
        "edge_index": torch.stack([graph.senders, graph.receivers]),
        "unit_shifts": graph.shifts,
        "shifts": torch.einsum("es,esc->ec", graph.shifts, graph.cell[graph.graph_of_edge]),
        "cell": cell.reshape(-1, 3),
        "batch": graph.graph_of_atom,
        "ptr": torch.cat([ends.new_zeros(1), ends]),
        "head": graph.heads,
    }
