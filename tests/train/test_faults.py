"""Faults in real processes: memory, losses that are not finite, signals, ranks that hang or die."""

import json
import logging
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from mace_train.distributed.signals import exit_code
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings, TrainSettings
from mace_train.train import step as step_module
from mace_train.train.gradients import Gradients
from mace_train.train.setup import set_up
from mace_train.train.train import fit, train
from tests.train.processes import LINUX, records_so_far, torchrun, wait_for, words, workers
from tests.train.ranks import run_command_on_ranks, run_ranks
from tests.train.training import after_steps, assert_same_end, settings_for

TIMEOUT_S = 10


def little_memory(model: Any, limit: int, where: str) -> Any:
    """A ``predict`` that runs out of memory with more atoms than ``limit`` in a bin.

    In the backward pass it does so at the embedding, when other gradients are in flight.
    """
    predict, too_many = step_module.predict, [False]

    def limited(model: Any, graph: Any, **options: Any) -> Any:
        too_many[0] = graph.n_atoms > limit
        if too_many[0] and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return predict(model, graph, **options)

    def fail(gradient: Any) -> None:
        if too_many[0] and where == "backward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    model.node_embedding.linear.weight.register_hook(fail)
    return limited


class Messages(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, entry: logging.LogRecord) -> None:
        self.texts.append(entry.getMessage())


def training_with_little_memory(
    world: World, settings: TrainSettings, limit: int, where: str
) -> tuple[dict[str, Any], tuple[int, int], list[str]]:
    """(progress, capacity, warnings) of a training whose rank 1 has little memory."""
    messages = Messages()
    logging.getLogger("mace_train").addHandler(messages)
    run = set_up(settings, world)
    updater = run.updater
    updater.gradients = Gradients(updater.parameters, world, bucket_bytes=64)  # many buckets
    if world.rank == 1:
        step_module.predict = little_memory(run.model, limit, where)
    fit(run)
    capacity = run.sampler.capacity
    return vars(run.progress), (capacity.max_atoms, capacity.max_edges), messages.texts


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_lowers_the_capacity_of_all_ranks(where, prepared, tmp_path):
    batching = BatchingSettings(max_atoms=30, max_edges=10_000)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=2, batching=batching)
    results = run_ranks(2, training_with_little_memory, tmp_path, settings, 20, where)
    progress = [result[0] for result in results]
    assert progress[0]["n_out_of_memory"] == progress[1]["n_out_of_memory"] > 0
    assert results[0][1] == results[1][1]
    assert results[0][1][0] < 30
    assert any(re.search(r"out of memory in step \d+ \(epoch 1\) with the bin of .*train\.xyz.* "
                         r"\(\d+ atoms, \d+ edges\)", text) for text in results[0][2])  # fmt: skip
    rows = records_so_far(
        tmp_path / "run"
    )  # that each structure counted once is checked by every epoch
    assert [row["epoch"] for row in rows] == [0, 1]
    # a resumed run begins with the lower capacity
    resumed = set_up(replace(settings, restart_latest=True, max_num_epochs=3), World())
    assert resumed.sampler.capacity.max_atoms == results[0][1][0]


def test_a_structure_that_alone_is_too_large_is_named(prepared, tmp_path, monkeypatch):
    run = set_up(settings_for(prepared, tmp_path / "run"), World())
    monkeypatch.setattr(step_module, "predict", little_memory(run.model, 0, "forward"))
    with pytest.raises(InputError, match=r"out of memory in step 1 .* cannot be made smaller"):
        fit(run)


def training_with_nan(world: World, settings: TrainSettings, bad: set[int]) -> Any:
    """Train where the structures ``bad`` give NaN; (progress, message of the error)."""
    run = set_up(settings, world)
    sums_of = step_module.loss_sums

    def spoilt(prediction: Any, graph: Any, *arguments: Any, **options: Any) -> Any:
        sums = sums_of(prediction, graph, *arguments, **options)
        if bad & set(graph.ids.tolist()):
            sums.numerators = sums.numerators * float("nan")
        return sums

    step_module.loss_sums = spoilt
    try:
        fit(run)
    except InputError as error:
        return vars(run.progress), str(error)
    finally:
        step_module.loss_sums = sums_of
    return vars(run.progress), None


def test_a_loss_that_is_not_finite_stops_all_ranks_or_is_skipped(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "stop", max_num_epochs=1)
    source = set_up(settings, World()).train.shards.sample(5).structure.source
    for progress, message in run_ranks(8, training_with_nan, tmp_path, settings, {5}):
        assert progress["epoch"] == -1
        assert re.search(r"step \d+ \(epoch 1\): the gradient is not finite", message)
        assert f"{source} (id 5)" in message
    skip = settings_for(prepared, tmp_path / "skip", max_num_epochs=2, non_finite="skip")
    progress, message = training_with_nan(World(), skip, {5})
    assert message is None
    assert progress["n_skipped"] == 2  # once in every epoch
    assert records_so_far(tmp_path / "skip")[-1]["n_skipped"] == 2
    everything = set(range(100))
    hopeless = settings_for(prepared, tmp_path / "hopeless", max_num_epochs=9, non_finite="skip")
    _, message = training_with_nan(World(), hopeless, everything)
    assert "after 10 skipped steps" in message


def interrupted_by(world: World, settings: TrainSettings, number: int, n_steps: int) -> int:
    """The exit code of a training of which the last rank gets a signal after some steps."""
    run = set_up(settings, world)

    def interrupt(_: Any) -> None:
        if run.progress.step == n_steps and world.rank == world.size - 1:
            os.kill(os.getpid(), number)

    try:
        with after_steps(interrupt):
            fit(run)
    except SystemExit as stop:
        return int(stop.code or 0)
    return -1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_gives_a_checkpoint_and_a_code_to_requeue_with(
    number, prepared, tmp_path, monkeypatch
):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    train(settings_for(prepared, tmp_path / "whole", max_num_epochs=2))
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=2, restart_latest=True)
    assert interrupted_by(World(), settings, number, 4) == os.EX_TEMPFAIL
    train(settings)
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert exit_code() == 0  # torchrun would start the ranks again


@pytest.mark.parametrize(
    ("n_ranks", "steps"),
    [(2, [3]), (16, [1, 2])],  # agreed on with the counts of the next step; at the end of an epoch
)
def test_a_signal_to_one_rank_stops_all(n_ranks, steps, prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=9)
    codes = run_ranks(n_ranks, interrupted_by, tmp_path, settings, signal.SIGUSR1, 2)
    assert codes == [os.EX_TEMPFAIL] * n_ranks
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))
    assert [path.stem for path in kept] == [f"step-{step:010d}" for step in steps]


@pytest.mark.slow
@LINUX
def test_torchrun_restarts_a_killed_rank_and_the_end_is_the_same(prepared, tmp_path):
    """(Again and again, on 8 ranks: scripts/bench/soak.py.)"""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_command_on_ranks(2, *words(prepared, whole, "max_num_epochs=8"))
    command = torchrun(2, 3, *words(prepared, killed, "max_num_epochs=8"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    for n_records in (1, 3):  # killed twice
        wait_for(lambda n=n_records: len(records_so_far(killed)) > n, process)
        os.kill(workers(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=400) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert "resumed from" in (tmp_path / "log.txt").read_text()
    assert_same_end(whole, killed)
    tensors = json.loads((killed / "checkpoints" / "last.json").read_text())
    assert tensors["progress"]["n_starts"] >= 2


@pytest.mark.slow
@LINUX
def test_a_rank_that_hangs_is_named_within_the_timeout(prepared, tmp_path):
    log_path = tmp_path / "log.txt"
    with open(log_path, "w") as log:
        more = ("max_num_epochs=400", f"cluster.timeout_s={TIMEOUT_S}")
        command = torchrun(2, 0, *words(prepared, tmp_path / "run", *more))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: len(records_so_far(tmp_path / "run")) > 1, process)
            stopped = workers(process.pid)[1]
            os.kill(stopped, signal.SIGSTOP)
            start = time.monotonic()
            wait_for(lambda: "is stopped, dead or cut off" in log_path.read_text(), process, 120)
            assert time.monotonic() - start < 100  # ten minutes is the default
            os.kill(stopped, signal.SIGKILL)
            assert process.wait(timeout=120) != 0
        finally:
            if process.poll() is None:
                process.kill()
    text = log_path.read_text()
    assert f"rank 1 (process {stopped} on " in text
    assert f"no answer within cluster.timeout_s={TIMEOUT_S}" in text


def late_rank(world: World, settings: TrainSettings) -> str:
    """The message on rank 0 when rank 1 sleeps in its own code for longer than the timeout."""
    run = set_up(settings, world)

    def sleep(_: Any) -> None:
        if world.rank == 1:
            time.sleep(TIMEOUT_S + 9)

    try:
        with after_steps(sleep):
            fit(run)
    except RuntimeError as error:
        raise world.explain(error) or error from error
    return "no error"


@pytest.mark.slow
def test_a_rank_stuck_in_its_own_code_is_told_from_a_dead_one(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run")
    message = r"rank 1 \(process \d+ .* runs but is behind the others"
    with pytest.raises(ProcessRaisedException, match=message):
        run_ranks(2, late_rank, tmp_path, settings, timeout_s=TIMEOUT_S)
