"""The training and validation data of a run, and whether the loss has labels in them."""

import logging
from collections.abc import Sequence
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
from mace_train.data.values import has_weight
from mace_train.errors import InputError
from mace_train.settings import LossSettings, TrainSettings
from mace_train.settings.inputs import InputSpec
from mace_train.train.loss import TERMS
from mace_train.train.stages import Stage, stages_of

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


Splits = tuple[Split, Split | None]


def open_splits(folder: Path, statistics: Statistics, settings: TrainSettings) -> Splits:
    """(training, validation) data of a folder.

    Raises ``InputError`` where the loss of a stage has no labels to train on, or none to validate
    on, which every epoch would pass with loss 0.
    """
    heads, loss = list(statistics.heads), settings.loss
    train = _split(open_split(folder, "train"), heads, loss)
    _check_config_types(loss, train)
    stages = stages_of(settings)
    for stage in stages:
        _check_training(stage, train)
    _warn_of_unused(loss, train, heads)
    if "valid" not in statistics.splits:
        LOGGER.warning("%s has no valid/: no validation, best is the last epoch", folder)
        return train, None
    valid = _split(open_split(folder, "valid"), heads, loss)
    best_head = settings.checkpoints.head
    chosen = None if best_head not in heads else valid.head_of == heads.index(best_head)
    for stage in stages:
        _check_validation(stage, valid, chosen, best_head)
    return train, valid


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


def warn_of_unused_inputs(specs: Sequence[InputSpec], train: Split) -> None:
    """Warn of inputs in the shards that the model does not take."""
    unused = sorted(set(train.shards.input_names) - {spec.name for spec in specs})
    if unused:
        LOGGER.warning(
            "the training structures have %s, which the model does not take as an input "
            "(model.embedding_specs)",
            ", ".join(unused),
        )


def _check_config_types(loss: LossSettings, train: Split) -> None:
    """InputError for the weight of a config_type that no training structure has."""
    unknown = sorted(loss.weights_by_type().keys() - set(train.config_types))
    if unknown:
        raise InputError(
            f"loss.config_type_weights names {', '.join(unknown)}, which no training structure "
            f"has; the config_types are: {', '.join(train.config_types)}"
        )


def _check_training(stage: Stage, train: Split) -> None:
    """InputError for a loss that no training structure contributes to."""
    counted = labels_with_weight(stage.loss, train)
    if not any(of_term.any() for of_term in counted.values()):
        raise InputError(
            f"nothing to train on{_in(stage)}: of the terms of the loss ({', '.join(counted)}) no "
            f"training structure has a label with a weight above 0; {_WEIGHTS}, or preprocess "
            "again with the right names of the labels"
        )


def _check_validation(
    stage: Stage, valid: Split, chosen: NDArray[np.bool_] | None, head: str | None
) -> None:
    """InputError for a loss that no validation structure, of the ``chosen`` [n], contributes to."""
    counted = labels_with_weight(stage.loss, valid)
    if not any(
        (of_term if chosen is None else of_term & chosen).any() for of_term in counted.values()
    ):
        of_head = "" if chosen is None else f" of checkpoints.head={head}"
        raise InputError(
            f"nothing to validate on{_in(stage)}: of the terms of the loss ({', '.join(counted)}) "
            f"no validation structure{of_head} has a label with a weight above 0, so the loss of "
            f"every epoch would be 0; {_WEIGHTS}, or give other validation data (none, "
            "data.valid_fraction=0, keeps the last epoch)"
        )


_WEIGHTS = (
    "change the weights of the loss (loss.*_weight, config_type_weights, head_weights) or those in "
    "the files (config_weight, config_energy_weight, ...)"
)


def _in(stage: Stage) -> str:
    return "" if stage.name == "one" else f" in stage {stage.name}"


def _warn_of_unused(loss: LossSettings, train: Split, heads: list[str]) -> None:
    """Warn of terms of the loss, and of heads, that no training structure contributes to."""
    counted = labels_with_weight(loss, train)
    for name, of_term in counted.items():
        if not of_term.any():
            LOGGER.warning("loss.%s_weight has no effect: no training structure has a label", name)
    used = np.logical_or.reduce(list(counted.values()))
    for index, head in enumerate(heads):
        if len(heads) > 1 and not used[train.head_of == index].any():
            LOGGER.warning(
                "head %s: no training structure has a label with a weight above 0, so its readout "
                "is not trained",
                head,
            )


def labels_with_weight(loss: LossSettings, split: Split) -> dict[str, NDArray[np.bool_]]:
    """Which structures [n] have a label that counts, for every term that has a weight.

    The loss multiplies the weights of the term, of config_type and head, of the structure and of
    its label; see ``has_weight``.
    """
    shards, of_structure = split.shards, split.weight_of.numpy()
    columns = {"energy": 1, "forces": 2, "stress": 3, "virials": 3}
    labelled = {
        "energy": shards.has_energy,
        "forces": shards.has_forces,
        "stress": shards.has_stress,
        "virials": shards.has_stress,
    }
    found = {}
    for name in TERMS:
        of_term = getattr(loss, f"{name}_weight")
        if of_term > 0:
            product = (
                of_term * of_structure * shards.weights[:, 0] * shards.weights[:, columns[name]]
            )
            found[name] = labelled[name] & has_weight(product)
    return found
