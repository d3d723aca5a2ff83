"""Models of mace-torch <-> ours, by tensors of the same names plus a header.

A mace-torch state dict lacks the mean number of neighbours and the names of the building blocks;
the ``header`` has them, and ``from_mace_torch`` needs nothing but the two.
Everything else the header states is compared with the shapes of the tensors, and the couplings in
the file with ours (``couplings``).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from ase.data import covalent_radii
from torch import Tensor

from mace_train.errors import InputError
from mace_train.interop.couplings import check_convolution, contraction_weights
from mace_train.interop.header import LINEAR_READOUT, Header, check_features
from mace_train.interop.old_layouts import in_current_layout
from mace_train.model.interactions.attention import ATTENTION_CHANNELS
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.model.pair_repulsion import AGNESI, SOFT, ZBL, ZBL_WEIGHTS
from mace_train.settings import ModelSettings
from mace_train.settings.model import DEFAULT_RADIAL_MLP, RESIDUAL

E0_NAME = "atomic_energies_fn.atomic_energies"  # [n_heads, n_elements]
# settings that belong to the data, to training, or that num_channels and max_L say too
_NOT_IN_HEADERS = ("r_max", "scaling", "hidden_irreps", "interaction", "interaction_first")
# tensors that hold no trained number, or that are checked before they are left out
_DERIVED = re.compile(
    r"(output_mask|\.bias|conv_tp\.weight|_zeroed|U_matrix_\d+|_w3j_\d+_\d+_\d+)$"
    r"|^(atomic_numbers|r_max|num_interactions)$"
    r"|^(atomic_energies_fn|scale_shift|radial_embedding\.(bessel_fn|cutoff_fn))\."
)


def from_mace_torch(state_dict: Mapping[str, Tensor], header: Mapping[str, Any]) -> MACE:
    """Our model with the weights of a mace-torch model, in their precision, on the CPU.

    Scale, shift and E0s come from the state dict; ``header["E0s"]`` (a list, eV) replaces the
    latter, which a file built in float32 holds rounded. Files of older versions are read too
    (``old_layouts``).

    Raises InputError for an unsupported feature or a header that does not fit the tensors.
    """
    check_features(header)
    state_dict = {name: tensor.cpu() for name, tensor in state_dict.items()}
    state_dict = in_current_layout(state_dict, header.get("atomic_numbers"))
    header = {**header, "distance_transform": header.get("distance_transform") or "None"}
    if header.get("readout_cls") == LINEAR_READOUT:
        del header["readout_cls"]
    _check_sizes(state_dict, header)
    names = {field.name for field in fields(ModelSettings)} - set(_NOT_IN_HEADERS)
    settings = ModelSettings(
        **{name: header[name] for name in names if name in header},
        interaction=next(iter(header.get("interaction_cls", [])), RESIDUAL),
        interaction_first=header.get("interaction_cls_first"),
    )
    data = ModelData(
        r_max=float(header["r_max"]),
        atomic_numbers=tuple(int(z) for z in state_dict["atomic_numbers"]),
        avg_num_neighbors=float(header["avg_num_neighbors"]),
        heads=_heads(state_dict, header),
    )
    tensors = contraction_weights(state_dict, settings.max_ell, settings.correlations())
    state_dict = {**state_dict, **tensors}
    model = MACE(settings, data).to(state_dict["node_embedding.linear.weight"].dtype)
    _check_names(model, state_dict)
    _check_constants(model, state_dict)
    check_convolution(state_dict)
    model.load_state_dict({name: state_dict[name] for name in model.state_dict()})
    return model


def to_mace_torch_state_dict(model: MACE) -> dict[str, Tensor]:
    """The tensors of a mace-torch ScaleShiftMACE that carry information, by mace-torch's names.

    ``load_state_dict(..., strict=False)`` of a model of the same architecture takes them; its
    avg_num_neighbors is an attribute of each interaction and must be set there.
    """
    data, dtype, device = model.data, model.dtype, model.E0s.device
    return {
        **{name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        **{name: tensor.to(device, copy=True) for name, tensor in _constants(model).items()},
        "atomic_numbers": torch.tensor(data.atomic_numbers),
        "num_interactions": torch.tensor(model.settings.num_interactions),
        E0_NAME: model.E0s.detach().clone(),
        "scale_shift.scale": torch.tensor([head.scale for head in data.heads], dtype=dtype),
        "scale_shift.shift": torch.tensor([head.shift for head in data.heads], dtype=dtype),
    }


def header_for(model: MACE) -> Header:
    """The header that belongs to ``to_mace_torch_state_dict`` of the model, as plain data."""
    settings, data = asdict(model.settings), model.data
    first, *others = model.settings.blocks()
    for name in _NOT_IN_HEADERS:
        del settings[name]
    if model.settings.embedding_specs is None:  # as in headers of models without inputs
        for name in ("embedding_specs", "use_embedding_readout"):
            del settings[name]
    return {
        "class": "ScaleShiftMACE",
        **settings,
        "max_L": settings["max_L"] if settings["num_interactions"] > 1 else 0,
        "r_max": data.r_max,
        "avg_num_neighbors": data.avg_num_neighbors,
        "atomic_numbers": list(data.atomic_numbers),
        "E0s": [list(head.E0s) for head in data.heads],
        "heads": list(data.head_names),
        "interaction_cls_first": first,
        "interaction_cls": sorted(set(others)),
    }


def _check_sizes(state_dict: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Compare every size that the header states with the tensors."""
    for name, size_in in _SIZES.items():
        try:
            found = size_in(state_dict)
        except KeyError as error:
            raise InputError(f"the state dict lacks {error}; is it one of a MACE?") from error
        if name in header and header[name] != found:
            raise InputError(
                f"header and tensors differ in {name}: the header says {header[name]!r}, the "
                f"tensors say {found!r}; make the header from the same model with header_of"
            )


def _n_channels(state_dict: Mapping[str, Tensor]) -> int:
    return state_dict["node_embedding.linear.weight"].numel() // len(state_dict["atomic_numbers"])


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Number of different values of the group in pattern among the names."""
    return len({m.group(1) for m in (re.match(pattern, name) for name in state_dict) if m})


def _radial_widths(state_dict: Mapping[str, Tensor], layer: int) -> list[int]:
    """Of the inputs and the hidden layers of the radial network of a layer."""
    network = f"interactions.{layer}.conv_tp_weights."
    n_layers = _count(state_dict, re.escape(network) + r"layer(\d+)\.weight")
    if n_layers > 0:
        return [state_dict[f"{network}layer{i}.weight"].shape[0] for i in range(n_layers)]
    # maps, each with a norm and an activation behind it
    maps = [state_dict[f"{network}net.0.weight"]]
    while (name := f"{network}net.{3 * len(maps)}.weight") in state_dict:
        maps.append(state_dict[name])
    return [matrix.shape[1] for matrix in maps]


def _num_radial_basis(state_dict: Mapping[str, Tensor]) -> int:
    """Inputs of the first network but those of both atoms."""
    n_inputs = _radial_widths(state_dict, 0)[0]
    if _has_attention(state_dict, 0):
        return n_inputs - 2 * ATTENTION_CHANNELS
    is_directed = "interactions.0.source_embedding.weight" in state_dict
    return n_inputs - 2 * _n_channels(state_dict) if is_directed else n_inputs


def _radial_MLP(state_dict: Mapping[str, Tensor]) -> list[int]:
    for layer in range(_n_layers(state_dict)):
        if not _has_attention(state_dict, layer):
            return _radial_widths(state_dict, layer)[1:]
    return list(DEFAULT_RADIAL_MLP)


def _has_attention(state_dict: Mapping[str, Tensor], layer: int) -> bool:
    return f"interactions.{layer}.linear_down.weight" in state_dict


def _n_layers(state_dict: Mapping[str, Tensor]) -> int:
    return _count(state_dict, r"interactions\.(\d+)\.")


def _degree_of_message(state_dict: Mapping[str, Tensor]) -> int:
    """Of the first interaction, whose messages have one path to every degree."""
    up = state_dict["interactions.0.linear_up.weight"]  # of scalars alone
    if "interactions.0.linear_2.weight" in state_dict:
        n_weights = state_dict["interactions.0.linear_2.weight"].numel()
        return n_weights // _n_channels(state_dict) ** 2 - 1
    return state_dict["interactions.0.linear.weight"].numel() // up.numel() - 1


_TRANSFORM_KEYS = {
    "Agnesi": "radial_embedding.distance_transform.q",
    "Soft": "radial_embedding.distance_transform.alpha",
}
_CONTRACTIONS = r"products\.%d\.symmetric_contractions\.contractions\."


def _correlation(state_dict: Mapping[str, Tensor]) -> int | list[int]:
    """That of all layers, or of each."""
    orders = [
        _count(state_dict, _CONTRACTIONS % layer + r"0\.weights\.(\d+)") + 1
        for layer in range(_n_layers(state_dict))
    ]
    return orders[0] if len(set(orders)) == 1 else orders


_SIZES: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "atomic_numbers": lambda tensors: [int(z) for z in tensors["atomic_numbers"]],
    "num_channels": _n_channels,
    "num_interactions": _n_layers,
    "max_L": lambda tensors: _count(tensors, _CONTRACTIONS % 0 + r"(\d+)\.weights_max") - 1,
    "correlation": _correlation,
    "max_ell": _degree_of_message,
    "num_radial_basis": _num_radial_basis,
    "radial_MLP": _radial_MLP,
    "pair_repulsion": lambda tensors: _count(tensors, r"(pair_repulsion_fn)\.") > 0,
    "distance_transform": lambda tensors: next(
        (name for name, key in _TRANSFORM_KEYS.items() if key in tensors), "None"
    ),
}


def _check_names(model: MACE, state_dict: Mapping[str, Tensor]) -> None:
    """Every parameter must be there in our shape, and nothing unknown beside them."""
    ours = model.state_dict()
    for name, tensor in ours.items():
        found = tuple(state_dict[name].shape) if name in state_dict else "no such tensor"
        if found != tuple(tensor.shape):
            hint = ""
            if "contractions" in name and name in state_dict:
                hint = "; reduced couplings (use_reduced_cg) need the U_matrix tensors of the file"
            raise InputError(f"{name}: expected {tuple(tensor.shape)}, found {found}{hint}")
    known = ours.keys() | _constants(model).keys()
    unknown = sorted(n for n in state_dict if n not in known and not _DERIVED.search(n))
    if unknown:
        raise InputError(f"tensors of features that are not supported: {', '.join(unknown[:5])}")


def _check_constants(model: MACE, state_dict: Mapping[str, Tensor]) -> None:
    """Cutoff, Bessel frequencies, and what pairs of elements need, are constants of our model."""
    numbers = list(model.data.atomic_numbers)
    for name, expected in _constants(model).items():
        ours, found = expected.double(), state_dict.get(name, expected).double()
        if name.endswith("covalent_radii") and len(found) > max(numbers):
            ours, found = ours[numbers], found[numbers]
        if ours.shape != found.shape or not torch.allclose(ours, found, rtol=1e-5, atol=0.0):
            raise InputError(
                f"{name} is {found.tolist()}, the header implies {ours.tolist()}; correct the "
                "header (trained Bessel frequencies and other constants cannot be imported)"
            )


def _constants(model: MACE) -> dict[str, Tensor]:
    """What mace-torch stores and our model has built in."""
    data, settings, dtype = model.data, model.settings, model.dtype
    r_max = torch.tensor(data.r_max, dtype=dtype)
    exponent = torch.tensor(settings.num_cutoff_basis, dtype=torch.int32)
    embedding, transform = "radial_embedding.", "radial_embedding.distance_transform."
    constants = {
        "r_max": r_max,
        embedding + "cutoff_fn.p": exponent,
        embedding + "cutoff_fn.r_max": r_max,
    }
    n_basis = settings.num_radial_basis
    if settings.radial_type == "gaussian":
        centres = torch.linspace(0.0, data.r_max, n_basis, dtype=torch.float64)
        constants[embedding + "bessel_fn.gaussian_weights"] = centres.to(dtype)
    else:
        frequencies = torch.arange(1, n_basis + 1, dtype=torch.float64) * (math.pi / data.r_max)
        constants |= {
            embedding + "bessel_fn.bessel_weights": frequencies.to(dtype),
            embedding + "bessel_fn.r_max": r_max,
            embedding + "bessel_fn.prefactor": (2.0 / r_max).sqrt(),
        }
    radii = torch.as_tensor(covalent_radii).to(dtype)
    of_transform = {"Agnesi": AGNESI, "Soft": SOFT}.get(settings.distance_transform)
    if of_transform is not None:
        constants[transform + "covalent_radii"] = radii
        for name, value in of_transform.items():
            constants[transform + name] = torch.tensor(value, dtype=dtype)
    if settings.pair_repulsion:
        constants |= {
            "pair_repulsion_fn.c": torch.tensor(ZBL_WEIGHTS, dtype=dtype),
            "pair_repulsion_fn.p": exponent,
            "pair_repulsion_fn.covalent_radii": radii,
        }
        for name, value in ZBL.items():
            constants[f"pair_repulsion_fn.{name}"] = torch.tensor(value, dtype=dtype)
    return constants


def _heads(state_dict: Mapping[str, Tensor], header: Mapping[str, Any]) -> tuple[Head, ...]:
    """E0s, scale and shift of every head; ``header["E0s"]`` is a list, or one for each head."""
    stored = state_dict[E0_NAME].double().view(-1, len(state_dict["atomic_numbers"])).tolist()
    names = header.get("heads") or _names_of_heads(len(stored))
    E0s = header.get("E0s") or stored
    E0s = E0s if isinstance(E0s[0], (list, tuple)) else [E0s]
    scales = _of_heads(state_dict, "scale_shift.scale", 1.0, len(names))
    shifts = _of_heads(state_dict, "scale_shift.shift", 0.0, len(names))
    if len(stored) != len(names) or len(E0s) != len(names):
        raise InputError(
            f"header and tensors differ in heads: the header names {', '.join(names)} and E0s of "
            f"{len(E0s)}, {E0_NAME} has {len(stored)}; make the header from the same model with "
            "header_of"
        )
    rows = zip(E0s, scales, shifts, names, strict=True)
    return tuple(Head(tuple(values), scale, shift, name) for values, scale, shift, name in rows)


def _names_of_heads(n_heads: int) -> list[str]:
    return ["Default"] if n_heads == 1 else [f"head_{i}" for i in range(n_heads)]


def _of_heads(
    state_dict: Mapping[str, Tensor], name: str, default: float, n_heads: int
) -> list[float]:
    """A number for each head."""
    if name not in state_dict:
        return [default] * n_heads
    values: list[float] = state_dict[name].double().flatten().tolist()
    if len(values) not in (1, n_heads):
        raise InputError(f"{name} has {len(values)} numbers for {n_heads} heads")
    return values * (n_heads // len(values))
