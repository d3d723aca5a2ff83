"""Models made of other models: with other elements, with more heads, with one of several heads.

What depends on elements is one row or block of weights for each (in embeddings, skip_tp and the
contraction, where they do), read at the element of an atom. e3nn divides by the root of the number
of inputs, and a one-hot element has as many as there are elements; so rows that are kept are
multiplied by (n_new / n_old)^(1/2) in embeddings and skip_tp, and every remaining atom has the
energy it had.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mace_train.checks import check_head
from mace_train.errors import InputError
from mace_train.model.linear import ElementEmbedding, ElementLinear
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import ModelSettings

Change = Callable[[str, Tensor], Tensor]
_OF_HEADS = ("readouts.", "embedding_readout.")


def with_elements(model: MACE, atomic_numbers: Sequence[int]) -> MACE:
    """The model for these elements alone (any order, made ascending).

    Elements that it does not know are initialised with the mean of the weights of those it knows,
    and E0s of 0.
    """
    numbers, old = tuple(sorted(set(atomic_numbers))), model.data.atomic_numbers
    if numbers == old:
        return model
    rows = [old.index(z) if z in old else None for z in numbers]
    if not any(row is not None for row in rows):
        names = ", ".join(chemical_symbols[z] for z in numbers)
        raise InputError(f"the model knows none of {names}, only {_symbols(old)}")
    factor = (len(numbers) / len(old)) ** 0.5

    def rows_of(table: Tensor) -> Tensor:
        """Rows of the new elements from rows of the old ones."""
        mean = table.mean(0)
        return torch.stack([mean if i is None else table[i] for i in rows])

    def change(name: str, weight: Tensor) -> Tensor:
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, ElementEmbedding):
            return rows_of(weight.view(len(old), -1)).flatten() * factor
        if isinstance(layer, ElementLinear):  # [degree, channel in, element, channel out]
            blocks = weight.view(layer.shape).movedim(2, 0)
            return rows_of(blocks).movedim(0, 2).flatten() * factor
        of_element = ".symmetric_contractions." in name and not model.settings.use_agnostic_product
        return rows_of(weight) if of_element else weight  # [element, path, channel]

    heads = tuple(
        replace(head, E0s=tuple(0.0 if i is None else head.E0s[i] for i in rows))
        for head in model.data.heads
    )
    return _rebuilt(model, replace(model.data, atomic_numbers=numbers, heads=heads), change)


def with_heads(
    model: MACE, heads: Sequence[Head], sources: Sequence[str] | str | None = None
) -> MACE:
    """The model with these heads, each with the readouts of one head of the model.

    ``sources`` names it for each of them, or for all; a model that has one head needs no name.
    """
    names = [sources] * len(heads) if sources is None or isinstance(sources, str) else [*sources]
    alone = {name: one_head(model, name).state_dict() for name in dict.fromkeys(names)}
    n_heads, settings = len(heads), model.settings
    first = one_head(model, names[0])

    def change(name: str, weight: Tensor) -> Tensor:
        if not name.startswith(_OF_HEADS) or n_heads == 1:
            return weight
        of_heads = [alone[source][name] for source in names]
        if name.endswith("linear_1.weight"):  # [channel, head, hidden]
            return torch.stack([w.view(settings.num_channels, -1) for w in of_heads], 1).flatten()
        if name.endswith(".bias"):  # [head, hidden] or [head]
            return torch.cat(of_heads)
        if name.endswith(("linear_mid.weight", "linear_2.weight")):  # [head, hidden, head, n_out]
            width = settings.mlp_width()
            joined = weight.new_zeros(n_heads, width, n_heads, weight.numel() // width)
            for i, block in enumerate(of_heads):
                joined[i, :, i] = block.view(width, -1)
            return joined.flatten() * n_heads**0.5
        return torch.stack(of_heads, 1).flatten()  # [channel, head]

    return _rebuilt(first, replace(model.data, heads=tuple(heads)), change)


def with_embedding_specs(model: MACE, specs: Mapping[str, Any]) -> MACE:
    """The same weights with other keys and defaults of the inputs."""
    settings = replace(model.settings, embedding_specs=dict(specs))
    return _rebuilt(model, model.data, lambda name, weight: weight, settings)


def one_head(model: MACE, name: str | None = None, setting: str = "head") -> MACE:
    """The model of one of its heads; a model that has one needs no name.

    ``setting`` is where the name is given, for the InputError where it is needed or not known.
    """
    names = model.data.head_names
    if name is None and len(names) > 1:
        raise InputError(
            f"the model has the heads {', '.join(names)}; choose one with {setting}={names[0]}"
        )
    if name is not None:
        check_head(setting, name, names)
    if len(names) == 1:
        return model
    head, n_heads = names.index(name or ""), len(names)

    def change(name: str, weight: Tensor) -> Tensor:
        if not name.startswith(_OF_HEADS):
            return weight
        if name.endswith("linear_1.weight"):  # [channel, head, hidden]
            return weight.view(model.settings.num_channels, n_heads, -1)[:, head].flatten()
        if name.endswith(".bias"):  # [head, hidden] or [head]
            return weight.view(n_heads, -1)[head]
        if name.endswith(("linear_mid.weight", "linear_2.weight")):  # [head, hidden, head, n_out]
            blocks = weight.view(n_heads, model.settings.mlp_width(), n_heads, -1)
            return blocks[head, :, head].flatten() * n_heads**-0.5
        return weight.view(-1, n_heads)[:, head]  # [channel, head]

    return _rebuilt(model, replace(model.data, heads=(model.data.heads[head],)), change)


def _rebuilt(
    model: MACE, data: ModelData, change: Change, settings: ModelSettings | None = None
) -> MACE:
    """A model of the same architecture for other data, with changed weights."""
    weights = {
        name: change(name, tensor.detach()).clone() for name, tensor in model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        built = MACE(settings or model.settings, data, model.kernels).to(model.dtype)
    built.load_state_dict(weights)
    return built.to(model.E0s.device)


def _symbols(atomic_numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in atomic_numbers)
