"""Parts of the benchmarks for a GPU that need none: batches, passes, goals."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.modules import module_of

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def script(name: str, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCH / "gpu"), str(BENCH), *sys.path])
    return module_of(next(BENCH.rglob(f"{name}.py")))


def test_a_mixed_batch_has_the_atoms_asked_for(monkeypatch):
    batches = script("step_batches", monkeypatch)
    structures = batches.mixed(3072)
    sizes = [structure.n_atoms for structure in structures]
    assert sum(sizes) == 3072
    assert min(sizes) < 10
    assert 300 < max(sizes) <= batches.MOST_ATOMS
    graph, numbers = batches.batch_of(structures, torch.float32)
    assert graph.n_atoms == 3072
    assert set(numbers) <= set(batches.ELEMENTS)
    assert float(graph.vectors().norm(dim=1).min()) > 1.5  # no two atoms in one place
    assert 15 < graph.n_edges / graph.n_atoms < 60
    again = batches.mixed(3072)
    assert all(
        np.array_equal(a.positions, b.positions) for a, b in zip(structures, again, strict=True)
    )


def test_first_structures_stay_within_the_atoms_asked_for(xyz, monkeypatch):
    batches = script("step_batches", monkeypatch)
    every = batches.first_structures(xyz, 10**6)
    total = sum(structure.n_atoms for structure in every)
    some = batches.first_structures(xyz, total - 1)
    assert len(some) == len(every) - 1
    assert batches.first_structures(xyz, 0) == []


def test_the_passes_are_value_gradients_and_gradients_of_those(monkeypatch):
    cases = script("cases", monkeypatch)
    torch.manual_seed(0)
    x, w = torch.randn(2, 7, dtype=torch.float64)
    program = cases.Program(lambda x, w: [w * x**3], [x, w], 1)
    found = {name: work() for name, work in cases.passes(program)}
    assert tuple(found) == cases.PASSES
    (value,), (gradient,), (of_x, of_w, of_probe) = found.values()
    torch.testing.assert_close(value, w * x**3)
    probe, cotangent = gradient / (3 * w * x**2), of_probe / (3 * w * x**2)
    torch.testing.assert_close(of_x, 6 * w * x * probe * cotangent)
    torch.testing.assert_close(of_w, 3 * x**2 * probe * cotangent)


@pytest.mark.parametrize("operation", ["contraction", "convolution"])
def test_bounds_count_every_input_and_output_once(operation, monkeypatch):
    cases = script("cases", monkeypatch)
    make = {"contraction": cases.contraction_case, "convolution": cases.convolution_case}[operation]
    case = make(100, 1, torch.device("cpu"), torch.float32, [])
    works = dict(cases.passes(case.ours))
    inputs = sum(tensor.numel() for tensor in case.ours.inputs)
    outputs = sum(tensor.numel() for tensor in works["value"]())
    assert case.words[0] == inputs + outputs
    first = sum(tensor.numel() for tensor in works["gradients"]())
    assert case.words[1] == inputs + outputs + first
    second = [tensor.numel() for tensor in works["second derivatives"]() if tensor is not None]
    # cotangents of the first gradients are as large as they, those of the value as the value;
    # gradients of weights of elements are left out, as few as they are
    weights = case.ours.inputs[1].numel() if operation == "contraction" else 0
    assert case.words[2] == inputs + outputs + first + sum(second) - weights
    assert case.instructions[0] < case.instructions[1] < case.instructions[2]


def test_goals(monkeypatch):
    goals = script("goals", monkeypatch)
    found = goals.row("a step", 2.0, {"slow": 9.0, "fast": 3.0}, 1.5)
    assert (found["peer_name"], found["ratio"]) == ("fast", 1.5)
    assert goals.reaches(found)
    assert not goals.reaches(goals.row("a step", 2.0, {"fast": 2.9}, 1.5))
    alone = goals.row("a step", 2.0, {}, 1.0)
    assert not goals.reaches(alone)
    assert "none that ran, no ratio" in goals.describe(alone)


def test_a_time_is_no_shorter_than_what_runs(monkeypatch):
    import time

    timing = script("timing", monkeypatch)
    device = torch.device("cpu")
    assert timing.median_seconds(lambda: time.sleep(0.01), device, 3) >= 0.01
    machine = timing.Machine(fma_per_s=4.0, bytes_per_s=2.0)
    assert (machine.bound(8.0, 2.0), machine.bound(4.0, 6.0)) == (2.0, 3.0)


def test_a_program_that_fails_or_has_another_loss_is_not_compared_with(monkeypatch):
    training_step = script("training_step", monkeypatch)
    graph = SimpleNamespace(positions=torch.zeros(1))

    def broken():
        raise torch.OutOfMemoryError("CUDA out of memory")

    ours = {"ours": lambda: lambda: 5.0, "broken": broken, "other": lambda: lambda: 6.0}
    monkeypatch.setattr(
        training_step, "backends", lambda *_: ({}, {"cuEquivariance": "is not here"})
    )
    monkeypatch.setattr(training_step.programs, "peer_step", lambda *_: lambda: 5.001)
    found, missing = training_step.measure_all(ours, graph, None, 2)
    assert set(found) == {"ours", training_step.ALONE}
    assert missing == {
        "cuEquivariance": "is not here",
        "broken": "OutOfMemoryError: CUDA out of memory",
        "other": "another step: its loss is 6.0, ours 5.0",
    }
    goal = training_step._row("a step", found, "seconds", 2.0, training_step.CUEQ)
    assert goal["ratio"] is None


def test_different_gradients_are_counted(monkeypatch):
    training_step = script("training_step", monkeypatch)
    results = iter(torch.tensor([[1.0], [1.0], [1.5], [1.0], [1.5]]))
    assert training_step.count_different(lambda: next(results)) == 2
