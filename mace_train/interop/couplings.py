"""Couplings in a file of mace-torch against ours: signs, reduced bases, foreign tables.

The tensors ``U_matrix_nu`` of a file say what its paths are. Where they are our paths up to signs
(another e3nn release), weights are negated. Where they are fewer (``use_reduced_cg``), each is a
sum of ours,

    g_r = sum_p C[p, r] f_p,     so that     w_p = sum_r C[p, r] w_r

gives the same function; C is the least-squares solution of smallest norm over random points, and
exact to rounding. Anything else is an error.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mace_train.errors import InputError
from mace_train.model.coupling import Float, wigner_3j
from mace_train.model.product_basis import Path, evaluate, paths

_TOLERANCE = 1e-4  # relative; files of float32 hold rounded couplings


def check_convolution(state_dict: Mapping[str, Tensor]) -> None:
    """InputError unless the couplings that the file's convolutions were trained with are ours."""
    for name, tensor in state_dict.items():
        found = re.search(r"_w3j_(\d+)_(\d+)_(\d+)$", name)
        if found is None:
            continue
        ours = wigner_3j(*(int(degree) for degree in found.groups()))
        if not np.allclose(ours, tensor.double().cpu().numpy(), atol=1e-5):
            raise InputError(f"{name} differs from e3nn 0.4.4's coupling; it cannot be imported")


def contraction_weights(
    state_dict: Mapping[str, Tensor], max_ell: int, correlations: Sequence[int]
) -> dict[str, Tensor]:
    """The weights [n_elements, n_paths, n_channels] of all contractions, in our paths, by name.

    ``correlations`` are those of the layers. Weights of a file without ``U_matrix`` tensors are
    taken as they are.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        found = re.match(r"(products\.(\d+)\..*contractions\.(\d+)\.)U_matrix_(\d+)$", name)
        if found is None:
            continue
        prefix, (layer, degree, order) = found.group(1), map(int, found.groups()[1:])
        correlation = correlations[layer] if layer < len(correlations) else order
        is_highest = order == correlation
        key = prefix + ("weights_max" if is_highest else f"weights.{correlation - 1 - order}")
        weights[key] = _in_our_paths(name, state_dict[key], tensor, (max_ell, order, degree))
    return weights


def _in_our_paths(name: str, weight: Tensor, u: Tensor, degrees: tuple[int, int, int]) -> Tensor:
    max_ell, order, degree = degrees
    if weight.shape[1] != u.shape[-1]:
        raise InputError(
            f"{name} has {u.shape[-1]} couplings and {weight.shape[1]} weights; the file is damaged"
        )
    n_ours = len(paths(max_ell, order, degree))
    points = np.random.RandomState(1).standard_normal((n_ours + 16, (max_ell + 1) ** 2))
    known: dict[Path, Float] = {}
    every = [evaluate(p, points, known) for p in paths(max_ell, order, degree)]
    ours = np.stack(every, axis=-1).reshape(-1, n_ours)
    theirs = _values(u.double().cpu().numpy(), points, order)
    if theirs.shape[1] == n_ours:
        signs = np.where((ours * theirs).sum(0) < 0, -1.0, 1.0)
        if np.allclose(ours, signs * theirs, rtol=0, atol=_TOLERANCE * np.abs(ours).max()):
            return weight.detach().clone() * torch.as_tensor(signs).to(weight)[:, None]
    columns = np.linalg.lstsq(ours, theirs, rcond=1e-10)[0]
    if not np.allclose(ours @ columns, theirs, rtol=0, atol=_TOLERANCE * np.abs(theirs).max()):
        raise InputError(f"{name} differs from the couplings of e3nn; it cannot be imported")
    columns = np.where(np.abs(columns) < 1e-13, 0.0, columns)
    projected = torch.einsum("zrk,pr->zpk", weight.detach().double(), torch.as_tensor(columns))
    return projected.to(weight)


def _values(u: Float, points: Float, order: int) -> Float:
    """Couplings [(2L + 1,) n, ..., n, n_paths] at points [n_points, n]: [n_points (2L + 1), n_p].

    The leading axis is left out for scalars.
    """
    if u.ndim == order + 1:
        u = u[None]
    values = np.einsum("m...ir,ni->nm...r", u, points)
    for _ in range(order - 1):
        values = np.einsum("nm...ir,ni->nm...r", values, points)
    return values.reshape(-1, values.shape[-1])
