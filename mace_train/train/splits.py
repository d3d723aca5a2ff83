"""The training and validation data of a run, and whether the loss has labels in them."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mace_train.balance.costs import Costs
from mace_train.data.loading.loader import config_types_of, heads_of
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import Statistics, open_split
from mace_train.errors import InputError
from mace_train.settings import LossSettings
from mace_train.train.loss import TERMS

LOGGER = logging.getLogger("mace_train")


@dataclass
class Split:
    """The structures of one split with what training looks up by structure id."""

    shards: ShardSet
    config_types: list[str]
    config_type_of: Tensor  # [n] int64, index into config_types
    weight_of: Tensor  # [n] float64, weight by config_type and head
    head_of: NDArray[np.int64]  # [n] index into the model's heads

    @cached_property
    def costs(self) -> Costs:
        """Atoms and edges of every structure."""
        return Costs(self.shards.n_atoms.astype(np.int64), self.shards.n_edges.astype(np.int64))


def open_splits(
    folder: Path, statistics: Statistics, loss: LossSettings
) -> tuple[Split, Split | None]:
    """(training, validation) data of a folder; ``InputError`` for a loss that has no labels."""
    heads = list(statistics.heads)
    train = _split(open_split(folder, "train"), heads, loss)
    _check_loss(loss, train)
    if "valid" not in statistics.splits:
        LOGGER.warning("%s has no valid/: no validation, best is the last epoch", folder)
        return train, None
    return train, _split(open_split(folder, "valid"), heads, loss)


def _split(shards: ShardSet, heads: list[str], loss: LossSettings) -> Split:
    config_types, head_of = config_types_of(shards), heads_of(shards, heads, str(shards.folder))
    by_type, by_head = loss.weights_by_type(), loss.weights_by_head()
    weight_of_type = torch.tensor([by_type.get(name, 1.0) for name in config_types.names])
    weight_of_head = torch.tensor([by_head.get(name, 1.0) for name in heads], dtype=torch.float64)
    return Split(
        shards=shards,
        config_types=config_types.names,
        config_type_of=config_types.index_of,
        weight_of=weight_of_type.to(torch.float64)[config_types.index_of] * weight_of_head[head_of],
        head_of=head_of,
    )


def _check_loss(loss: LossSettings, train: Split) -> None:
    """InputError for a loss that nothing contributes to; a warning for a term without labels."""
    unknown = sorted(loss.weights_by_type().keys() - set(train.config_types))
    if unknown:
        raise InputError(
            f"loss.config_type_weights names {', '.join(unknown)}, which no training structure "
            f"has; the config_types are: {', '.join(train.config_types)}"
        )
    counts = _weighted_labels(loss, train)
    if not any(counts.values()):
        raise InputError(
            f"nothing to train on: of the terms of the loss ({', '.join(counts)}) no training "
            "structure with a weight above 0 has a label; change the weights of the loss, or "
            "preprocess again with the right names of the labels"
        )
    for name, n_labelled in counts.items():
        if n_labelled == 0:
            LOGGER.warning("loss.%s_weight has no effect: no training structure has a label", name)


def _weighted_labels(loss: LossSettings, train: Split) -> dict[str, int]:
    """Training structures with a weight and a label, for every term that has a weight."""
    weighted = train.weight_of.numpy() > 0
    labelled = {
        "energy": np.ones(len(weighted), dtype=bool),
        "forces": train.shards.has_forces,
        "stress": train.shards.has_stress,
        "virials": train.shards.has_stress,
    }
    return {
        name: int((labelled[name] & weighted).sum())
        for name in TERMS
        if getattr(loss, f"{name}_weight") > 0
    }
