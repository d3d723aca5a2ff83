"""Epochs of L-BFGS: one step over all training data, with a line search (as mace-torch's lbfgs).

Every evaluation is a pass over the whole epoch, its gradient exact: denominators are those of all
the data. All ranks see the same loss and gradient, so they take the same decisions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mace_train.balance.epoch_plan import EpochPlan
from mace_train.data.graph import Graph
from mace_train.errors import InputError
from mace_train.train.epoch import EpochLoop, graphs_of_steps
from mace_train.train.loss import LossSums, label_counts
from mace_train.train.optim import set_lr
from mace_train.train.run import EpochTotals
from mace_train.train.step import backward, out_of_memory, seed_step


class LbfgsLoop(EpochLoop):
    """An epoch that is one step; it cannot be interrupted within the step."""

    def train(self) -> LossSums:
        """One step; the sums of the loss where it began."""
        run = self.run
        epoch_plan = EpochPlan.full(run.sampler, run.progress.epoch + 1)
        counts = self._label_counts_over_ranks(epoch_plan)
        evaluations: list[LossSums] = []
        seed_step(run, run.progress.step)

        def closure() -> Tensor:
            sums = self._gradient(epoch_plan, counts)
            evaluations.append(sums)
            return sums.loss(run.stage.loss)

        self.lr = run.lr(epoch_plan.time(0), epoch_plan.time(epoch_plan.n_steps))
        set_lr(run.updater.optimizer, self.lr)
        run.updater.optimizer.step(closure)  # type: ignore[arg-type]
        self.norm = run.updater.gradients.norm()
        self.planned_straggler = epoch_plan.plan.straggler
        self.samples = epoch_plan.samples
        self.n_seen = len(epoch_plan.plan.bins.ids)
        self.timer.step_done()
        run.progress.step += 1
        run.epoch_totals = EpochTotals.zero(run.world.device)
        self._tick()
        return evaluations[0]

    def _graphs(self, epoch_plan: EpochPlan) -> Iterator[Graph]:
        steps = graphs_of_steps(self.run, epoch_plan, first_bin=0, accumulate=1)
        while graphs := self._next(steps):
            yield graphs[0]

    def _label_counts_over_ranks(self, epoch_plan: EpochPlan) -> Tensor:
        """[4] labels of all structures, the denominators of the loss."""
        loss = self.run.stage.loss.loss
        own = torch.stack([label_counts(graph, loss) for graph in self._graphs(epoch_plan)])
        return self.run.world.all_reduce_async(own.sum(0))()

    def _gradient(self, epoch_plan: EpochPlan, label_counts_over_ranks: Tensor) -> LossSums:
        """Set the gradient over all data; the loss sums over all ranks."""
        run, updater, failure = self.run, self.run.updater, None
        sums, loss = LossSums.zero(run.world.device), run.stage.loss
        updater.zero_gradients()
        for graph in self._graphs(epoch_plan):
            run.world.report_progress(run.progress.step, "compute")
            try:
                weight = run.train.weight_of[graph.ids]
                sums = sums + backward(
                    updater, graph, weight, loss, lambda: label_counts_over_ranks, self.timer
                )
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0]
                break
        with self.timer("communication"):
            updater.gradients.finish(failed=failure is not None)
            total = run.world.sum(torch.stack((sums.numerators, sums.counts)))
        if not updater.gradients.norm() < float("inf"):
            failures = [f for f in run.world.gather_all(failure) if f is not None]
            raise InputError(
                f"L-BFGS step of epoch {epoch_plan.epoch + 1}: "
                f"{failures[0] if failures else 'the gradient is not finite'}; lower "
                f"{'batching.max_atoms' if failures else 'the learning rate of this stage'}, "
                "restart_latest=true continues from the epoch before"
            )
        return LossSums(total[0], total[1])
