"""mace-torch's symmetric contraction and e3nn's convolution, called as our own operations are."""

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mace_train.irreps import FeatureIrreps, import_o3

CHANNELS = 128


def has_reduced_couplings() -> bool:
    """Whether mace-torch can make them."""
    names = ("cuequivariance", "cuequivariance_torch")
    return all(importlib.util.find_spec(name) is not None for name in names)


def mace_contraction(
    names: list[str], elements: Tensor, n_elements: int, dtype: torch.dtype, *, reduced: bool
) -> Callable[..., list[Tensor]]:
    """A function of x [n, 16, channels] and of full-coupling weights, with l_max 3 to 0e+1o."""
    peer = _mace_module(n_elements, dtype, reduced=reduced)
    project = _to_reduced(_mace_module(n_elements, dtype, reduced=False), peer) if reduced else {}
    one_hot = torch.nn.functional.one_hot(elements, n_elements).to(dtype)

    def function(x: Tensor, *weights: Tensor) -> list[Tensor]:
        parameters = {
            name: torch.matmul(project[name], weight) if reduced else weight
            for name, weight in zip(names, weights, strict=True)
        }
        out = torch.func.functional_call(peer, parameters, (x.transpose(1, 2), one_hot))
        vectors = out[:, CHANNELS:].view(len(x), CHANNELS, 3).transpose(1, 2)
        return [torch.cat([out[:, None, :CHANNELS], vectors], dim=1)]

    return function


def _mace_module(n_elements: int, dtype: torch.dtype, *, reduced: bool) -> torch.nn.Module:
    from mace.modules.symmetric_contraction import SymmetricContraction as Theirs

    o3 = import_o3()
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    module = Theirs(
        irreps_in=o3.Irreps(str(FeatureIrreps(CHANNELS, 3))),
        irreps_out=o3.Irreps(str(FeatureIrreps(CHANNELS, 1))),
        correlation=3,
        num_elements=n_elements,
        use_reduced_cg=reduced,
    ).to(dtype)
    torch.set_default_dtype(default)
    return module


def _to_reduced(full: Any, reduced: Any) -> dict[str, Tensor]:
    """For each weight the matrix that takes it to the reduced couplings: the same function."""
    matrices = {}
    for number, (theirs, ours) in enumerate(
        zip(full.contractions, reduced.contractions, strict=True)
    ):
        for order, name in ((3, "weights_max"), (2, "weights.0"), (1, "weights.1")):
            wide, narrow = (_symmetric(m.U_tensors(order), order) for m in (theirs, ours))
            matrix = torch.linalg.lstsq(narrow, wide).solution
            assert float((narrow @ matrix - wide).abs().max()) < 1e-5, "not the same couplings"
            matrices[f"contractions.{number}.{name}"] = matrix.to(theirs.weights_max.dtype)
    return matrices


def _symmetric(table: Tensor, order: int) -> Tensor:
    """Couplings [components, paths], averaged over the order of the factors; float64."""
    table = table.double()
    first = table.dim() - 1 - order
    every = list(itertools.permutations(range(first, first + order)))
    rest = list(range(first)), [table.dim() - 1]
    total = sum(table.permute(*rest[0], *factors, *rest[1]) for factors in every)
    return (total / len(every)).reshape(-1, table.shape[-1])


def places_in_e3nn(paths: list[tuple[int, int, int]]) -> Tensor:
    """Where the values of our blocks, [component, path, channel] by degree, are in e3nn's row."""
    sizes = [2 * l3 + 1 for _, _, l3 in paths]
    parts = torch.arange(CHANNELS * sum(sizes)).split([CHANNELS * size for size in sizes])
    blocks = []
    for degree in range(4):
        of_degree = [
            part.view(CHANNELS, size).T
            for part, size in zip(parts, sizes, strict=True)
            if size == 2 * degree + 1
        ]
        blocks.append(torch.stack(of_degree, dim=1).flatten())
    return torch.cat(blocks)


def e3nn_convolution(
    paths: list[tuple[int, int, int]],
    senders: Tensor,
    receivers: Tensor,
    n_atoms: int,
    dtype: torch.dtype,
) -> Callable[..., list[Tensor]]:
    """TensorProduct and index_add: x [atoms, 4, channels], y [edges, 16], r [edges, paths, ...]."""
    o3, parity = import_o3(), "eo"
    middle = [f"{CHANNELS}x{l3}{parity[l3 % 2]}" for _, _, l3 in paths]
    instructions = [(l1, l2, i, "uvu", True) for i, (l1, l2, _) in enumerate(paths)]
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    product = o3.TensorProduct(
        o3.Irreps(f"{CHANNELS}x0e+{CHANNELS}x1o"),
        o3.Irreps("0e+1o+2e+3o"),
        o3.Irreps("+".join(middle)),
        instructions,
        shared_weights=False,
        internal_weights=False,
    ).to(dtype)
    torch.set_default_dtype(default)

    def function(x: Tensor, y: Tensor, r: Tensor) -> list[Tensor]:
        flat = torch.cat([x[:, 0], x[:, 1:].transpose(1, 2).flatten(1)], dim=1)
        messages = product(flat[senders], y, r.flatten(1))
        return [messages.new_zeros(n_atoms, messages.shape[1]).index_add(0, receivers, messages)]

    return function
