"""The symmetric contraction as the dense sum over paths."""

from itertools import pairwise

import numpy as np
import torch

from mace_train.model.contraction import SymmetricContraction
from mace_train.model.coupling import clebsch_gordan, degree_slice
from mace_train.model.product_basis import Path, paths


def dense_tensor(path: Path, l_max: int) -> np.ndarray:
    """U [2L + 1, n_components, ..., n_components] of one path, by coupling one copy at a time."""
    n_components = (l_max + 1) ** 2
    unit = np.eye(n_components)
    tensor = unit[degree_slice(path[0][0])]
    for (_, before), (degree, reached) in pairwise(path):
        table = clebsch_gordan(reached, before, degree)
        tensor = np.einsum("mij,i...,jb->m...b", table, tensor, unit[degree_slice(degree)])
    return tensor


def dense_contraction(module: SymmetricContraction, l_max, x, elements):
    """Sum over orders and paths of weight * U : x (x) ... (x) x, one einsum each."""
    results = []
    for degree, contraction in enumerate(module.contractions):
        total = 0.0
        for order in range(1, len(contraction.weights) + 2):
            weights = contraction.of_order(order)[elements]
            for p, path in enumerate(paths(l_max, order, degree)):
                tensor = torch.as_tensor(dense_tensor(path, l_max))
                letters = "abcd"[:order]
                factors = ",".join(f"n{letter}k" for letter in letters)
                value = torch.einsum(f"m{letters},{factors}->nmk", tensor, *[x] * order)
                total = total + weights[:, p, None] * value
        results.append(total)
    return torch.cat(results, dim=1)
