"""Features of an atom from inputs beside the geometry, such as the total charge and spin.

    e_i = table_i[class]  or  W_2 silu(W_1 value + b_1) + b_2        of each input i
    h_0 = embedding(element) + silu(W [e_1 e_2 ...])

As mace-torch's GenericJointEmbedding, by whose names the weights are exchanged. Inputs of a
structure are those of each of its atoms (``data/input_values.py`` encodes them).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mace_train.errors import InputError
from mace_train.model.batch_index import BatchIndex
from mace_train.settings.inputs import InputSpec


class JointEmbedding(nn.Module):
    """Scalars that depend on the inputs of an atom."""

    def __init__(self, specs: Sequence[InputSpec], n_channels: int) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.embedders = nn.ModuleDict()
        for spec in self.specs:
            if hasattr(self.embedders, spec.name):
                raise InputError(
                    f"model.embedding_specs: PyTorch has no module with the name {spec.name}; "
                    "choose another one, and give the name in the files as its key"
                )
            self.embedders[spec.name] = _embedder(spec)
        width = sum(spec.emb_dim for spec in self.specs)
        self.project = nn.Sequential(nn.Linear(width, n_channels, bias=False), nn.SiLU())

    def forward(self, inputs: Tensor, index: BatchIndex) -> Tensor:
        """Features [n_atoms, 1, n_channels] from encoded inputs [n_atoms, n_inputs]."""
        found = []
        for i, spec in enumerate(self.specs):
            embedder, values = self.embedders[spec.name], inputs[:, i]
            if spec.is_class:
                table = embedder.get_parameter("weight")
                found.append(index.backend.take_rows(table, values.long()))
            else:
                found.append(embedder(values.unsqueeze(1)))
        features: Tensor = self.project(torch.cat(found, dim=1))
        return features.unsqueeze(1)


def _embedder(spec: InputSpec) -> nn.Module:
    """Of one input, with PyTorch's initial distributions, as in mace-torch."""
    if spec.is_class:
        return nn.Embedding(spec.num_classes, spec.emb_dim)
    return nn.Sequential(
        nn.Linear(1, spec.emb_dim, bias=spec.use_bias),
        nn.SiLU(),
        nn.Linear(spec.emb_dim, spec.emb_dim, bias=spec.use_bias),
    )


def count_embedding_weights(
    specs: Sequence[InputSpec], n_channels: int, n_heads: int, *, readout: bool
) -> int:
    """The number of weights that the inputs add to a model, without building it."""
    total = sum(spec.emb_dim for spec in specs) * n_channels
    for spec in specs:
        n_biases = 2 * spec.emb_dim if spec.use_bias else 0
        of_number = spec.emb_dim + spec.emb_dim**2 + n_biases
        total += spec.num_classes * spec.emb_dim if spec.is_class else of_number
    return total + (n_channels * n_heads if readout else 0)


def refuse_inputs(specs: Sequence[InputSpec], what: str) -> None:
    """InputError for a use of models that takes the geometry alone."""
    if specs:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(
            f"{what}: the model has the inputs {names}, and this takes positions, cell and "
            "elements alone; use MACETrainCalculator, which reads them from atoms.info and "
            "atoms.arrays, or mace-train export format=mace-torch"
        )
