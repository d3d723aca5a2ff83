"""Errors of a model on a split, every structure exactly once whatever the number of ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mace_train.balance.costs import Capacity, Costs, derive_capacity
from mace_train.balance.sampler import evaluation_plan
from mace_train.data.graph import Graph
from mace_train.data.loading.packed import on_device
from mace_train.distributed.world import World
from mace_train.model.derivatives import predict
from mace_train.settings import BatchingSettings
from mace_train.train.ema import holding
from mace_train.train.loss import LossSums, loss_sums
from mace_train.train.metrics import ErrorSums
from mace_train.train.run import Run


def validate(run: Run) -> tuple[float, list[dict[str, Any]]]:
    """(loss, table of errors) of the weights to use on the validation split, on every rank.

    The loss is that of one head where ``checkpoints.head`` names it.
    """
    assert run.valid is not None
    split, world, model = run.valid, run.world, run.model
    bins = evaluation_bins(split.costs, run.settings.batching, world)
    names = model.data.head_names
    errors = ErrorSums(split.config_types, model.data.atomic_numbers, world.device, names)
    best_head = run.settings.checkpoints.head
    total = LossSums.zero(world.device)
    graphs = run.graphs(split, bins)
    stress = bool(split.shards.has_stress.any())
    with holding(model, run.updater.weights_to_use()):
        for graph in graphs:
            ids, graph = graph.ids, on_device(graph, world.device)
            prediction = predict(model, graph, stress=stress, create_graph=False)
            weight = split.weight_of[ids].to(graph.weight)
            counted = graph if best_head is None else _of_head(graph, names.index(best_head))
            sums = loss_sums(prediction, counted, run.stage.loss, structure_weight=weight)
            total = total + sums.detached()
            errors.add(prediction, graph, split.config_type_of[ids].to(world.device))
    errors.sums = world.sum(errors.sums)
    reduced = world.sum(torch.stack((total.numerators, total.counts)))
    return float(LossSums(reduced[0], reduced[1]).loss(run.stage.loss)), errors.table()


def _of_head(graph: Graph, head: int) -> Graph:
    """The graph with the labels of one head alone."""
    mine = graph.heads == head
    names = ("has_energy", "has_forces", "has_stress")
    return replace(graph, **{name: getattr(graph, name) & mine for name in names})


def evaluation_bins(
    costs: Costs, settings: BatchingSettings, world: World | None = None
) -> list[NDArray[np.int64]]:
    """Every structure once: the bins of this rank, or all of them without a ``world``."""
    n_ranks, rank = (1, 0) if world is None else (world.size, world.rank)
    return list(evaluation_plan(costs, _capacity(costs, settings), n_ranks).of_rank(rank))


def _capacity(costs: Costs, settings: BatchingSettings) -> Capacity:
    """Capacity of one rank and batch: the given limits, or that of the largest structure."""

    def limit(given: int | None, largest: int) -> int | None:
        return None if given is None else max(given, largest)

    max_atoms = limit(settings.max_atoms, int(costs.n_atoms.max()))
    max_edges = limit(settings.max_edges, int(costs.n_edges.max()))
    return derive_capacity(costs, settings.valid_batch_size, max_atoms, max_edges)
