"""A model for some of the elements that it was trained on.

Weights of an element-dependent linear map are scaled by (number of elements)^(-1/2), so those that
are kept are multiplied by (n_kept / n)^(1/2), and the function stays the same.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from ase.data import chemical_symbols

from mace_train.errors import InputError
from mace_train.model.mace import MACE


def with_elements(model: MACE, atomic_numbers: Sequence[int]) -> MACE:
    """The model restricted to these elements, in the same precision; InputError if it lacks one."""
    data = model.data
    kept = sorted(set(atomic_numbers))
    unknown = [chemical_symbols[z] for z in kept if z not in data.atomic_numbers]
    if unknown:
        known = ", ".join(chemical_symbols[z] for z in data.atomic_numbers)
        raise InputError(f"the model does not know {', '.join(unknown)}; its elements are: {known}")
    rows = [data.atomic_numbers.index(z) for z in kept]
    n_before, n_channels = len(data.atomic_numbers), model.settings.num_channels
    factor = (len(rows) / n_before) ** 0.5
    smaller = replace(data, atomic_numbers=tuple(kept), E0s=tuple(data.E0s[i] for i in rows))
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "node_embedding.linear.weight":
            tensors[name] = factor * tensor.view(n_before, -1)[rows].flatten()
        elif name.endswith("skip_tp.weight"):
            of_elements = tensor.view(-1, n_channels, n_before, n_channels)
            tensors[name] = factor * of_elements[:, :, rows].flatten()
        elif ".symmetric_contractions." in name:
            tensors[name] = tensor[rows]
        else:
            tensors[name] = tensor
    with torch.random.fork_rng(devices=[]):
        result = MACE(model.settings, smaller, model.kernels).to(model.dtype)
    result.load_state_dict(tensors)
    return result
