"""The header of a mace-torch model: what its state dict does not say.

``header_of`` is the only code that ever sees a model object of mace-torch, and it reads attributes
alone, so that this package never imports mace-torch. The header is plain data (JSON).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mace_train.errors import InputError
from mace_train.irreps import irreps_string
from mace_train.settings.inputs import known_keys
from mace_train.settings.model import (
    AGNOSTIC,
    ATTENTION,
    DEFAULT_RADIAL_MLP,
    GATES,
    INTERACTION_BLOCKS,
    RADIAL_TYPES,
    READOUTS,
)

Header = dict[str, Any]
LINEAR_READOUT = "LinearReadoutBlock"  # that of a model of one layer

# features beyond our settings that a header may state; old headers may leave any of them out
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "class": ("ScaleShiftMACE", "MACE"),
    "interaction_cls": ([], *([name] for name in INTERACTION_BLOCKS)),
    "interaction_cls_first": INTERACTION_BLOCKS,
    "gate": GATES,
    "radial_type": RADIAL_TYPES,
    "distance_transform": ("None", None, "Agnesi", "Soft"),
    "pair_repulsion": (False, True),
    "apply_cutoff": (True, False),
    "use_so3": (False,),
    "use_agnostic_product": (False, True),
    "use_last_readout_only": (False, True),
    "joint_embedding": (False, True),
    "uniform_correlation": (True,),
    "readout_cls": (*READOUTS, LINEAR_READOUT),
}

_RADIAL_TYPES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian"}
_TRANSFORMS = {"NoneType": "None", "AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}


def header_of(mace_torch_model: Any) -> Header:
    """The header of a model object of mace-torch: settings by our names, and its features.

    Raises InputError for a class that is not MACE or ScaleShiftMACE.
    """
    model = mace_torch_model
    class_name = type(model).__name__
    if class_name not in SUPPORTED["class"]:
        raise InputError(
            f"a {class_name} cannot be imported; only {' and '.join(SUPPORTED['class'])}"
        )
    averages = {float(block.avg_num_neighbors) for block in model.interactions}
    if len(averages) > 1:
        raise InputError(f"layers differ in avg_num_neighbors: {sorted(averages)}")
    transform = getattr(model.radial_embedding, "distance_transform", None)
    last = model.readouts[-1]
    heads = list(getattr(model, "heads", ["Default"]))
    edge_irreps = getattr(model, "edge_irreps", None)
    first = type(model.interactions[0]).__name__
    bessel = type(model.radial_embedding.bessel_fn).__name__
    orders = [
        int(product.symmetric_contractions.contractions[0].correlation)
        for product in model.products
    ]
    specs = known_keys(getattr(model, "embedding_specs", None))
    readout = hasattr(model, "embedding_readout")
    inputs = {"embedding_specs": specs, "use_embedding_readout": readout} if specs else {}
    return {
        "class": class_name,
        "model": "MACE" if first == AGNOSTIC else "ScaleShiftMACE",
        "r_max": _shortest(float(model.r_max)),
        "avg_num_neighbors": averages.pop(),
        "atomic_numbers": [int(z) for z in model.atomic_numbers],
        "max_ell": int(model.spherical_harmonics._lmax),
        "max_L": int(model.products[0].linear.irreps_out.lmax),
        "num_channels": int(model.node_embedding.linear.irreps_out.dim),
        "correlation": orders[0] if len(set(orders)) == 1 else orders,
        "num_interactions": len(model.interactions),
        "keep_last_layer_irreps": len(model.products) > 1
        and int(model.products[-1].linear.irreps_out.lmax) > 0,
        "num_radial_basis": int(model.radial_embedding.out_dim),
        "num_cutoff_basis": int(model.radial_embedding.cutoff_fn.p),
        "radial_MLP": _radial_MLP(model.interactions),
        "edge_irreps": edge_irreps and str(edge_irreps),
        "use_edge_irreps_first": bool(
            edge_irreps and getattr(model, "use_edge_irreps_first", False)
        ),
        "MLP_irreps": _hidden_scalars(last, len(heads)) if len(model.interactions) > 1 else "16x0e",
        "interaction_cls_first": first,
        "interaction_cls": sorted({type(block).__name__ for block in model.interactions[1:]}),
        "heads": heads,
        "gate": _gate_name(last),
        "radial_type": _RADIAL_TYPES.get(bessel, bessel),
        "distance_transform": _TRANSFORMS.get(type(transform).__name__, type(transform).__name__),
        "pair_repulsion": hasattr(model, "pair_repulsion_fn"),
        "apply_cutoff": getattr(model, "apply_cutoff", True),
        "use_so3": getattr(model, "use_so3", False),
        "use_agnostic_product": getattr(model, "use_agnostic_product", False),
        "use_last_readout_only": getattr(model, "use_last_readout_only", False),
        "joint_embedding": hasattr(model, "joint_embedding"),
        "readout_cls": type(last).__name__,
        **inputs,
    }


def _shortest(value: float) -> float:
    """The number with the fewest digits that rounds to a value held in single precision."""
    return float(str(np.float32(value))) if np.float32(value) == value else value


def _radial_MLP(interactions: Any) -> list[int]:
    """Hidden widths of the radial networks that have no fixed ones."""
    for block in interactions:
        if type(block).__name__ != ATTENTION:
            network = block.conv_tp_weights
            if hasattr(network, "hs"):
                return [int(n) for n in network.hs[1:-1]]
            # files of the first version with nonlinear blocks; maps have norm and gate behind them
            return [int(layer.weight.shape[1]) for layer in list(network.net)[3::3]]
    return list(DEFAULT_RADIAL_MLP)


def _hidden_scalars(readout: Any, n_heads: int) -> str:
    """Those of one head."""
    irreps = readout.hidden_irreps
    return str(irreps) if n_heads == 1 else irreps_string([int(irreps.dim) // n_heads])


def _gate_name(readout: Any) -> str:
    if type(readout).__name__ == LINEAR_READOUT:
        return "silu"
    function = getattr(readout.non_linearity.acts[0], "f", None)
    return str(getattr(function, "__name__", function))


def check_features(header: Mapping[str, Any]) -> None:
    """Raise InputError, which names the feature, if a header has one that we do not support."""
    missing = [name for name in ("r_max", "avg_num_neighbors") if name not in header]
    if missing:
        raise InputError(f"the header lacks {', '.join(missing)}; make it with header_of(model)")
    if header.get("joint_embedding") and not header.get("embedding_specs"):
        raise InputError("the header lacks embedding_specs; make it with header_of(model)")
    for name, supported in SUPPORTED.items():
        value = header.get(name, supported[0])
        if value not in supported:
            raise InputError(
                f"mace-torch model with {name}={value!r} cannot be imported; supported: "
                f"{', '.join(map(repr, supported))}"
            )
