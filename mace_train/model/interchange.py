"""Models of mace-torch <-> ours, by tensors of the same names plus a header.

A mace-torch state dict lacks the mean number of neighbours and the names of the building blocks;
the header of ``mace_torch_header`` has them, and ``from_mace_torch`` needs nothing but the two.
Everything else the header states is compared with the shapes of the tensors. The couplings in the
file are compared with ours: a path whose stored U tensor has the opposite sign (another e3nn
release) gets its weights negated, any other difference is an error.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace_train.errors import InputError
from mace_train.model.coupling import wigner_3j
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.model.mace_torch_header import AGNOSTIC, RESIDUAL, check_features
from mace_train.model.product_basis import Path, evaluate, paths
from mace_train.settings import ModelSettings

E0_NAME = "atomic_energies_fn.atomic_energies"  # [n_heads, n_elements]
# tensors that hold no trained number, or that are checked before they are left out
_DERIVED = re.compile(
    r"(output_mask|\.bias|conv_tp\.weight|_zeroed|U_matrix_\d+|_w3j_\d+_\d+_\d+)$"
    r"|^(atomic_numbers|r_max|num_interactions)$"
    r"|^(radial_embedding|atomic_energies_fn|scale_shift)\."
)


def from_mace_torch(state_dict: Mapping[str, Tensor], header: Mapping[str, Any]) -> MACE:
    """Our model with the weights of a mace-torch model, in the precision of its weights.

    Scale, shift and E0s come from the state dict; ``header["E0s"]`` (a list, eV) replaces the
    latter, which a file built in float32 holds rounded. Old files with 0-d scale and shift and 1-d
    E0s are read too.

    Raises InputError for an unsupported feature or a header that does not fit the tensors.
    """
    check_features(header)
    _check_sizes(state_dict, header)
    names = {field.name for field in fields(ModelSettings)} - {"r_max", "scaling"}
    settings = ModelSettings(**{name: header[name] for name in names if name in header})
    data = ModelData(
        r_max=float(header["r_max"]),
        atomic_numbers=tuple(int(z) for z in state_dict["atomic_numbers"]),
        avg_num_neighbors=float(header["avg_num_neighbors"]),
        heads=_heads(state_dict, header),
    )
    model = MACE(settings, data).to(state_dict["node_embedding.linear.weight"].dtype)
    _check_names(model, state_dict)
    _check_radial(model, state_dict)
    _check_convolution(state_dict)
    weights = {name: state_dict[name].detach().clone() for name in model.state_dict()}
    _fix_signs(weights, state_dict, settings)
    model.load_state_dict(weights)
    return model


def to_mace_torch_state_dict(model: MACE) -> dict[str, Tensor]:
    """The tensors of a mace-torch ScaleShiftMACE that carry information, by mace-torch's names.

    ``load_state_dict(..., strict=False)`` of a model of the same architecture takes them; its
    avg_num_neighbors is an attribute of each interaction and must be set there.
    """
    data, settings, dtype = model.data, model.settings, model.dtype
    numbers = torch.arange(1, settings.num_radial_basis + 1, dtype=torch.float64)
    frequencies = numbers * (math.pi / data.r_max)
    r_max = torch.tensor(data.r_max, dtype=dtype)
    return {
        **{name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "atomic_numbers": torch.tensor(data.atomic_numbers),
        "r_max": r_max,
        "num_interactions": torch.tensor(settings.num_interactions),
        "radial_embedding.bessel_fn.bessel_weights": frequencies.to(dtype),
        "radial_embedding.bessel_fn.r_max": r_max,
        "radial_embedding.bessel_fn.prefactor": (2.0 / r_max).sqrt(),
        "radial_embedding.cutoff_fn.p": torch.tensor(settings.num_cutoff_basis, dtype=torch.int32),
        "radial_embedding.cutoff_fn.r_max": r_max,
        E0_NAME: model.E0s.detach().clone(),
        "scale_shift.scale": torch.tensor([head.scale for head in data.heads], dtype=dtype),
        "scale_shift.shift": torch.tensor([head.shift for head in data.heads], dtype=dtype),
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
    expected = header.get("model", ModelSettings.model)
    first = header.get("interaction_cls_first", RESIDUAL)
    if (expected == "MACE") != (first == AGNOSTIC) and "interaction_cls_first" in header:
        raise InputError(f"header: model={expected!r} does not go with {first} as first layer")


def _n_channels(state_dict: Mapping[str, Tensor]) -> int:
    return state_dict["node_embedding.linear.weight"].numel() // len(state_dict["atomic_numbers"])


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Number of different values of the group in pattern among the names."""
    return len({m.group(1) for m in (re.match(pattern, name) for name in state_dict) if m})


def _radial_widths(state_dict: Mapping[str, Tensor]) -> list[int]:
    n_layers = _count(state_dict, r"interactions\.0\.conv_tp_weights\.layer(\d+)\.weight")
    return [
        state_dict[f"interactions.0.conv_tp_weights.layer{i}.weight"].shape[0]
        for i in range(n_layers)
    ]


_CONTRACTION = r"products\.0\.symmetric_contractions\.contractions\."
_SIZES: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "atomic_numbers": lambda tensors: [int(z) for z in tensors["atomic_numbers"]],
    "num_channels": _n_channels,
    "num_interactions": lambda tensors: _count(tensors, r"interactions\.(\d+)\."),
    "max_L": lambda tensors: _count(tensors, _CONTRACTION + r"(\d+)\.weights_max") - 1,
    "correlation": lambda tensors: _count(tensors, _CONTRACTION + r"0\.weights\.(\d+)") + 1,
    "max_ell": lambda tensors: (
        tensors["interactions.0.linear.weight"].numel() // _n_channels(tensors) ** 2 - 1
    ),
    "num_radial_basis": lambda tensors: _radial_widths(tensors)[0],
    "radial_MLP": lambda tensors: _radial_widths(tensors)[1:],
}


def _check_names(model: MACE, state_dict: Mapping[str, Tensor]) -> None:
    """Every parameter must be there in our shape, and nothing unknown beside them."""
    ours = model.state_dict()
    for name, tensor in ours.items():
        found = tuple(state_dict[name].shape) if name in state_dict else "no such tensor"
        if found != tuple(tensor.shape):
            hint = "; models with use_reduced_cg cannot be imported" if "weights" in name else ""
            raise InputError(f"{name}: expected {tuple(tensor.shape)}, found {found}{hint}")
    unknown = sorted(n for n in state_dict if n not in ours and not _DERIVED.search(n))
    if unknown:
        raise InputError(f"tensors of features that are not supported: {', '.join(unknown[:5])}")


def _check_radial(model: MACE, state_dict: Mapping[str, Tensor]) -> None:
    """Cutoff and Bessel frequencies are constants of our model."""
    expected = to_mace_torch_state_dict(model)
    for name in (
        "r_max",
        "radial_embedding.bessel_fn.bessel_weights",
        "radial_embedding.cutoff_fn.p",
    ):
        ours, found = expected[name].double(), state_dict.get(name, expected[name]).double()
        if ours.shape != found.shape or not torch.allclose(ours, found, rtol=1e-5, atol=0.0):
            raise InputError(
                f"{name} is {found.tolist()}, the header implies {ours.tolist()}; correct the "
                "header (trained Bessel frequencies cannot be imported)"
            )


def _check_convolution(state_dict: Mapping[str, Tensor]) -> None:
    """The couplings that the file's convolutions were trained with must be ours."""
    for name, tensor in state_dict.items():
        found = re.search(r"_w3j_(\d+)_(\d+)_(\d+)$", name)
        if found is None:
            continue
        ours = wigner_3j(*(int(degree) for degree in found.groups()))
        if not np.allclose(ours, tensor.double().cpu().numpy(), atol=1e-5):
            raise InputError(f"{name} differs from e3nn 0.4.4's coupling; it cannot be imported")


def _fix_signs(
    weights: dict[str, Tensor], state_dict: Mapping[str, Tensor], settings: ModelSettings
) -> None:
    """Compare stored U tensors with our paths at one point; negate weights of opposite paths."""
    x = np.random.RandomState(1).standard_normal((1, (settings.max_ell + 1) ** 2))
    for name, tensor in state_dict.items():
        found = re.match(r"(.*contractions\.(\d+)\.)U_matrix_(\d+)$", name)
        if found is None:
            continue
        prefix, degree, order = found.group(1), int(found.group(2)), int(found.group(3))
        known: dict[Path, Any] = {}
        ours = [evaluate(p, x, known)[0] for p in paths(settings.max_ell, order, degree)]
        theirs = tensor.double().cpu().numpy()
        for _ in range(order):  # the leading axis m is left out for scalars
            theirs = np.tensordot(theirs, x[0], axes=([-2], [0]))
        theirs = theirs.reshape(2 * degree + 1, -1).T
        signs = np.where((np.array(ours) * theirs).sum(1) < 0, -1.0, 1.0)
        if not np.allclose(np.array(ours), signs[:, None] * theirs, atol=1e-4):
            raise InputError(f"{name} differs from the couplings of e3nn; it cannot be imported")
        last = "weights_max" if order == settings.correlation else None
        key = prefix + (last or f"weights.{settings.correlation - 1 - order}")
        weights[key] *= torch.as_tensor(signs).to(weights[key])[:, None]


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
            f"{len(E0s)}, {E0_NAME} has {len(stored)}"
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
