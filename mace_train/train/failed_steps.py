"""Steps that cannot be made: out of memory, gradients that are not finite; all ranks together."""

import logging
import math

from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.values import check_labels
from mace_train.errors import InputError, InvalidStructureError
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.run import Run
from mace_train.train.step import StepFailure, StepResult

LOGGER = logging.getLogger("mace_train")
MOST_SKIPPED_IN_ROW = 10
LOWER = 0.9  # capacity after a rank ran out of memory, relative to before


def handle_failed_step(
    run: Run, epoch_plan: EpochPlan, step: int, result: StepResult
) -> EpochPlan | None:
    """The new plan of the rest of the epoch, or None where the step is skipped; or InputError.

    ``step`` counts the bins of every rank that are done in ``epoch_plan``.
    """
    assert result.failures is not None
    out_of_memory = [failure for failure in result.failures if failure.reason == "memory"]
    if out_of_memory:
        return _lower_capacity(run, epoch_plan, step, out_of_memory[0])
    _skip(run, result.failures)
    return None


def _lower_capacity(run: Run, epoch_plan: EpochPlan, step: int, failure: StepFailure) -> EpochPlan:
    """Plan the rest of the epoch again with smaller bins; nothing of this step was trained."""
    costs, before = run.sampler.costs, run.sampler.capacity
    n_atoms, n_edges = int(costs.n_atoms[failure.ids].sum()), int(costs.n_edges[failure.ids].sum())
    what = f"the bin of {_names(run.train.shards, failure.ids)} ({n_atoms} atoms, {n_edges} edges)"
    after = lowered(costs, before)
    if len(failure.ids) <= 1 or after == before:
        raise InputError(
            f"out of memory in step {run.progress.step + 1} (epoch {epoch_plan.epoch + 1}) with "
            f"{what}: {failure.message}; it cannot be made smaller; use a smaller model, "
            "default_dtype=float32, or GPUs with more memory; "
            f"{where_to_continue(run.checkpoint_manager)}"
        )
    run.sampler.use(after)
    run.progress.n_out_of_memory += 1
    LOGGER.warning(
        "out of memory in step %d (epoch %d) with %s: %s; a bin holds at most %d atoms and %d "
        "edges from here on, set batching.max_atoms and max_edges to begin with",
        run.progress.step + 1,
        epoch_plan.epoch + 1,
        what,
        failure.message,
        after.max_atoms,
        after.max_edges,
    )
    return epoch_plan.rest(run.sampler, step)


def lowered(costs: Costs, capacity: Capacity) -> Capacity:
    """The next smaller capacity, which the largest structure still fits."""
    size, memory = capacity.batch_size, capacity.max_memory
    if memory is not None and costs.memory is not None:
        memory = max(int(LOWER * memory), int(costs.memory.max()))
    return Capacity(
        max(int(LOWER * capacity.max_atoms), int(costs.n_atoms.max())),
        max(int(LOWER * capacity.max_edges), int(costs.n_edges.max())),
        None if size is None else max(1, math.floor(LOWER * size)),
        memory,
    )


def _skip(run: Run, failures: list[StepFailure]) -> None:
    """Skip the step if the settings say so; InputError otherwise."""
    progress = run.progress
    ids = [i for one in failures for i in one.ids]
    where = f"; its bins with a non-finite loss hold {_names(run.train.shards, ids)}" if ids else ""
    what = (
        f"step {progress.step + 1} (epoch {progress.epoch + 2}): the gradient is not finite{where}"
    )
    in_row = progress.n_skipped_in_row + 1
    if run.settings.non_finite == "skip" and in_row <= MOST_SKIPPED_IN_ROW:
        progress.n_skipped, progress.n_skipped_in_row = progress.n_skipped + 1, in_row
        LOGGER.warning("%s; the step is skipped", what)
        return
    again = f", after {in_row - 1} skipped steps" if run.settings.non_finite == "skip" else ""
    raise InputError(
        f"{what}{again}{_unusable_label(run.train.shards, ids)}; lower optimizer.lr or clip_grad, "
        "and check the labels of these "
        f"structures, or set non_finite=skip; {where_to_continue(run.checkpoint_manager)}"
    )


def _unusable_label(shards: ShardSet, ids: list[int]) -> str:
    """What is wrong with the labels of the first structure that cannot be trained on, if one is."""
    for i in ids:
        structure = shards.sample(i).structure
        try:
            check_labels(
                f"{structure.source} (id {i})",
                structure.n_atoms,
                structure.energy,
                structure.forces,
                structure.stress,
            )
        except InvalidStructureError as error:
            return f"; {error}"
    return ""


def _names(shards: ShardSet, ids: list[int]) -> str:
    """Where the first few structures come from, with their ids."""
    named = [f"{shards.sample(i).structure.source} (id {i})" for i in ids[:5]]
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(named) + more


def where_to_continue(manager: CheckpointManager) -> str:
    """Where a run that had to stop can be continued from."""
    if not manager.steps():
        return "no checkpoint was written"
    return f"restart_latest=true continues from the checkpoint {manager.steps()[0]}"
