"""Building and calling models of mace-torch, which is imported inside of functions only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mace_train.interop.mace_torch import batch_of as mace_torch_batch
from mace_train.interop.mace_torch import import_mace
from mace_train.irreps import FeatureIrreps, import_o3
from mace_train.settings import ModelSettings
from mace_train.settings.model import RESIDUAL
from tests.model.systems import draw_nonlinear_weights

__all__ = [
    "arguments_of",
    "codegen",
    "import_mace",
    "mace_torch_batch",
    "mace_torch_model",
]

SAME_NAME = (  # in our settings and in mace-torch's models
    "max_L",
    "max_ell",
    "num_interactions",
    "correlation",
    "radial_MLP",
    "radial_type",
    "distance_transform",
    "pair_repulsion",
    "apply_cutoff",
    "edge_irreps",
    "use_edge_irreps_first",
    "use_agnostic_product",
    "use_last_readout_only",
    "keep_last_layer_irreps",
    "readout_cls",
    "MLP_irreps",
    "embedding_specs",
    "use_embedding_readout",
)


def arguments_of(settings: ModelSettings) -> dict[str, Any]:
    """The arguments of ``mace_torch_model`` for a model of our settings."""
    same = {name: getattr(settings, name) for name in SAME_NAME}
    first, *others = (name.removesuffix("InteractionBlock") for name in settings.blocks())
    return {
        **{name: value for name, value in same.items() if value is not None},
        "flavour": settings.model,
        "first": first,
        "interaction": others[0] if others else RESIDUAL.removesuffix("InteractionBlock"),
        "channels": settings.num_channels,
        "r_max": settings.r_max or 5.0,
        "num_bessel": settings.num_radial_basis,
        "num_polynomial_cutoff": settings.num_cutoff_basis,
        "gate": import_mace().gate_dict[settings.gate],
    }


def mace_torch_model(
    atomic_numbers: tuple[int, ...],
    *,
    flavour: str = "ScaleShiftMACE",
    seed: int = 0,
    channels: int = 4,
    max_L: int = 1,
    scripted: bool = False,
    first: str | None = None,
    interaction: str = "RealAgnosticResidual",
    **changes: Any,
) -> torch.nn.Module:
    """A float64 model as mace_run_train builds it for --model=flavour, with random weights.

    ``scripted`` is what users have, and takes twice as long to build.
    """
    modules = import_mace()
    o3 = import_o3()
    blocks = modules.interaction_classes
    agnostic = flavour == "MACE"
    for name in ("edge_irreps", "MLP_irreps"):
        if name in changes:
            changes[name] = o3.Irreps(changes[name])
    if "readout_cls" in changes:
        changes["readout_cls"] = modules.readout_classes[changes["readout_cls"]]
    first = first or ("RealAgnostic" if agnostic else "RealAgnosticResidual")
    arguments = {
        "r_max": 4.0,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 3,
        "interaction_cls": blocks[f"{interaction}InteractionBlock"],
        "interaction_cls_first": blocks[f"{first}InteractionBlock"],
        "num_interactions": 2,
        "num_elements": len(atomic_numbers),
        "hidden_irreps": o3.Irreps(str(FeatureIrreps(channels, max_L))),
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
    with torch.random.fork_rng(), warnings.catch_warnings(), codegen(scripted):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float64)
        try:
            model = modules.ScaleShiftMACE(**arguments)
        finally:
            torch.set_default_dtype(default)
        for name, parameter in model.readouts.named_parameters():
            if name.endswith("bias") and parameter.numel() > 0:  # zeros at first
                parameter.data.normal_()
        for block in model.interactions:
            if hasattr(block, "beta"):  # whose weights at first hide elements and density
                draw_nonlinear_weights(block)
    return model


@contextmanager
def codegen(scripted: bool) -> Iterator[None]:
    """Whether e3nn compiles the code that it generates by TorchScript, or runs it as it is."""
    import e3nn

    before = e3nn.get_optimization_defaults()
    if "jit_script_fx" in before:  # e3nn 0.4
        e3nn.set_optimization_defaults(jit_script_fx=scripted)
    try:
        yield
    finally:
        e3nn.set_optimization_defaults(**before)
