"""The examples in docstrings run as written, beside a preprocessed folder and a run."""

import doctest
import importlib

import pytest

# module -> names whose docstrings hold an example
EXAMPLES = {
    "mace_train.balance.batch_sampler": ["BalancedBatchSampler"],
    "mace_train.balance.sampler": ["BinSampler"],
    "mace_train.data.loading.loader": ["batches"],
    "mace_train.data.shards.shard_set": ["ShardSet"],
    "mace_train.evaluate.array_file": ["ArrayFile"],
    "mace_train.evaluate.evaluate": ["evaluated"],
    "mace_train.evaluate.farthest_points": ["farthest_points"],
    "mace_train.evaluate.set_descriptors": ["stream_descriptors"],
    "mace_train.model.mace": ["MACE"],
    "mace_train.ops.codegen.polynomial": ["Polynomial"],
    "mace_train.ops.segmented_polynomial": ["segmented_polynomial"],
    "mace_train.report.structure_map": ["Plane.of", "_ticks"],
    "mace_train.train.checkpoint": ["load_model"],
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module, prepared, trained, tmp_path, monkeypatch):
    (tmp_path / "prepared").symlink_to(prepared)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder().find(importlib.import_module(module))
    examples = [test for test in found if test.examples]
    assert [test.name for test in examples] == [f"{module}.{name}" for name in EXAMPLES[module]]
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_UDIFF)
    for test in examples:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
