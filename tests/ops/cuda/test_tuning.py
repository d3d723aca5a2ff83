"""The table of measured choices, and that no choice changes what a kernel computes."""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from mace_train._paths import KERNELS as KERNELS_FOLDER
from mace_train.errors import InputError
from mace_train.ops.codegen.kernel_spec import sum_kernel
from mace_train.ops.convolution_kernels import loops_over_pairs
from mace_train.ops.cuda import tuning as cuda_tuning
from mace_train.ops.cuda.emit import emit_cuda
from mace_train.ops.cuda.kernel import CudaKernel
from mace_train.ops.cuda.launch import CudaTarget
from mace_train.ops.cuda.passes import Tuning, tuning_of
from mace_train.ops.cuda.tuning import choices_of, entry_of, name_of
from mace_train.ops.symmetric_contraction import rows_per_chunk
from tests.ops.kernels import KERNELS, assert_right, contraction, convolution, needs_compiler

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "bench" / "gpu"))

import candidates  # noqa: E402

FLOAT = CudaTarget("float", 40)


def table_of(kernel, entry, architecture="sm_90", dtype="float32", width="40") -> dict:
    kernels = {name_of(kernel): {dtype: {width: entry}}}
    return {"format": 1, "architectures": {architecture: {"kernels": kernels}}}


@pytest.fixture
def use_table(tmp_path, monkeypatch):
    def use(table):
        path = tmp_path / f"tuning{len(list(tmp_path.iterdir()))}.json"
        path.write_text(table if isinstance(table, str) else json.dumps(table))
        monkeypatch.setattr(cuda_tuning, "TABLE", path)

    return use


def test_names_are_sizes():
    assert name_of(sum_kernel(3)) == "rows x3 -> sum3"
    assert name_of(contraction("forward")).startswith("rows x4 w")
    names = [name_of(make()) for make in KERNELS.values()]
    assert len(set(names)) == len(names)


def assert_table_is_read() -> None:
    """Every architecture and every entry of the table in use, as in the file."""
    architectures = json.loads(cuda_tuning.TABLE.read_text())["architectures"]
    assert choices_of("no such architecture") == cuda_tuning.Choices()
    for architecture, values in architectures.items():
        expected = {
            (kernel, dtype, int(width)): entry
            for kernel, dtypes in values.get("kernels", {}).items()
            for dtype, widths in dtypes.items()
            for width, entry in widths.items()
        }
        found = choices_of(architecture)
        assert json.loads(json.dumps(list(found.kernels.values()))) == list(expected.values())
        assert found.kernels.keys() == expected.keys()
        assert found.rows_per_chunk == values.get("rows_per_chunk")


def test_the_table_of_the_package_is_read():
    assert KERNELS_FOLDER / "tuning.json" == cuda_tuning.TABLE
    assert_table_is_read()


def test_a_table_is_read(use_table):
    table = table_of(contraction("forward"), {"blocks": 3, "split": ["out"]})
    table["architectures"]["sm_80"] = {"rows_per_chunk": 16}
    use_table(table)
    assert_table_is_read()
    assert len(choices_of("sm_90").kernels) == 1
    assert choices_of("sm_80").rows_per_chunk == 16


def test_without_a_table_all_have_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_tuning, "TABLE", tmp_path / "absent.json")
    for make in KERNELS.values():
        kernel = make()
        assert choices_of("sm_90").tuning(kernel, FLOAT) == tuning_of(kernel, 4)
    assert choices_of("sm_90").digest == ""


def test_an_entry_is_for_one_architecture_dtype_and_width(use_table):
    kernel = contraction("forward")
    use_table(table_of(kernel, {"blocks": 3, "split": ["out"]}))
    default = tuning_of(kernel, 4)
    assert choices_of("sm_90").tuning(kernel, FLOAT) == Tuning(blocks=3, split=("out",))
    assert choices_of("sm_80").tuning(kernel, FLOAT) == default
    assert choices_of(None).tuning(kernel, FLOAT) == default
    assert choices_of("sm_90").tuning(kernel, CudaTarget("float", 41)) == default
    assert choices_of("sm_90").tuning(kernel, CudaTarget("double", 40)) == tuning_of(kernel, 8)
    assert choices_of("sm_90").tuning(contraction("double"), FLOAT).blocks == 1


def test_an_entry_of_all_fields_is_read_back(use_table):
    kernel = convolution("forward")
    tuning = Tuning(2, 64, 5, 100, ("out0", "out1"), 16, 2, True, True, True)
    assert entry_of(tuning).keys() == {field.name for field in fields(Tuning)}
    use_table(table_of(kernel, entry_of(tuning)))
    assert choices_of("sm_90").tuning(kernel, FLOAT) == tuning


def test_a_choice_changes_the_source_and_its_place_in_the_cache(use_table, tmp_path):
    kernel = CudaKernel("sum 2", lambda: sum_kernel(2))
    cache = tmp_path / "cache"
    sources = {}
    for blocks in ({}, {"unroll": 8}, {"threads": 64}, {}):
        use_table(table_of(sum_kernel(2), blocks) if blocks else {"format": 1, "architectures": {}})
        sources[str(blocks)] = kernel.source(torch.float32, 40, cache, "sm_90")
        assert kernel.source(torch.float32, 40, cache, "sm_80") == sources["{}"]
    assert len(set(sources.values())) == 3
    assert len(list(cache.glob("*.cu"))) == 3


def test_chunks_take_the_length_of_the_architecture(use_table, monkeypatch):
    use_table({"format": 1, "architectures": {"sm_90": {"rows_per_chunk": 24}}})
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("mace_train.ops.cuda.driver.architecture", lambda device: "sm_90")
    assert rows_per_chunk(gpu) == 24
    monkeypatch.setattr("mace_train.ops.cuda.driver.architecture", lambda device: "sm_80")
    assert rows_per_chunk(gpu) == 16
    assert rows_per_chunk(torch.device("cpu")) == 32


@pytest.mark.parametrize("n_channels", [128, 512])
def test_gradients_visit_pairs_where_the_table_says_so(n_channels, use_table, monkeypatch):
    use_table({"format": 1, "architectures": {"sm_90": {"gradients_by_pair": True}}})
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("mace_train.ops.cuda.driver.architecture", lambda device: "sm_90")
    assert loops_over_pairs(gpu, n_channels) == (
        n_channels == 128
    )  # a thread for each in one block
    monkeypatch.setattr("mace_train.ops.cuda.driver.architecture", lambda device: "sm_80")
    assert not loops_over_pairs(gpu, n_channels)


def malformed(entry=None, **changes):
    return table_of(sum_kernel(1), {} if entry is None else entry, **changes)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", r"tuning.*json: no JSON"),
        ([], r"got \[\], expected an object"),
        ({"format": 2}, r"format: got 2, expected 1"),
        ({"format": 1}, r"architectures: got None"),
        (
            malformed({"block": 2}),
            r"sm_90, rows x1 -> sum1, float32, 40: got 'block', expected one",
        ),
        (malformed({"blocks": 0}), r"40, blocks: got 0, expected 1 to 32"),
        (malformed({"blocks": True}), r"blocks: got True"),
        (malformed({"threads": 33}), r"threads: got 33, expected a multiple of 32"),
        (malformed({"edges": 12}), r"edges: got 12, expected a power of two"),
        (malformed({"split": "x y"}), r"split: got 'x y', expected a list"),
        (malformed({"wide": 1}), r"wide: got 1, expected true or false"),
        (malformed(dtype="half"), r"got 'half', expected one of float32, float64"),
        (
            {"format": 1, "architectures": {"sm_90": {"gradients_by_pair": 1}}},
            r"by_pair: got 1, exp",
        ),
        (malformed(width="all"), r"got 'all', expected a number of channels"),
        (
            {"format": 1, "architectures": {"sm_90": {"rows_per_chunk": 0}}},
            r"rows_per_chunk: got 0",
        ),
    ],
)
def test_a_malformed_table_is_an_error(table, message, use_table):
    use_table(table)
    with pytest.raises(InputError, match=message) as caught:
        choices_of("sm_90")
    assert "tune.py --write" in str(caught.value)


def as_the_host_sees(source: str) -> str:
    """The text without what only a GPU's compiler heeds."""
    text = re.sub(
        r"__launch_bounds__\(.*\) run|#pragma unroll \d+|load_once|store_once", "", source
    )
    return text.replace("\n\n", "\n")


@needs_compiler
@pytest.mark.parametrize("name", ["gradients of edges", "gradients"])
def test_no_candidate_changes_results(name, tmp_path):
    """Candidates with the same text for the host are one."""
    kernel, target = KERNELS[name](), CudaTarget("double", 40)
    default = tuning_of(kernel, 8)
    near = candidates.neighbours(kernel, target, default)
    different = {as_the_host_sees(emit_cuda(kernel, target, t)): t for t in (default, *near)}
    assert len(different) > 3
    for tuning in different.values():
        assert_right(kernel, 40, torch.float64, tmp_path, tuning)


EVERYTHING = Tuning(3, 32, 4, 7, (), 8, 2, True, True, True)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["messages", "second derivatives of edges", "gradients of pairs", "sums"]
)
def test_choices_together(name, dtype, tmp_path):
    assert_right(KERNELS[name](), 72, dtype, tmp_path, EVERYTHING)
