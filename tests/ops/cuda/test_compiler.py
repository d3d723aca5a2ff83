"""NVRTC without a GPU: cubins, their cache, and the registers of all kernels of MACE."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mace_train.ops.codegen.kernel_spec import sum_kernel
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda.kernel import CudaKernel

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import kernel_budget  # noqa: E402

needs_nvrtc = pytest.mark.skipif(
    cuda_compiler.why_missing() is not None, reason="needs the extra cuda (NVRTC)"
)
ELF = b"\x7fELF"


@needs_nvrtc
def test_cubin_is_compiled_once(tmp_path, monkeypatch):
    source = CudaKernel("sum 2", lambda: sum_kernel(2)).source(torch.float32, 8, tmp_path)
    first = cuda_compiler.cubin(source, "sm_90", tmp_path)
    assert first.startswith(ELF)
    other = cuda_compiler.cubin(source, "sm_80", tmp_path)
    assert other.startswith(ELF)
    assert other != first
    assert len(list(tmp_path.glob("*.cubin"))) == 2
    monkeypatch.setattr(cuda_compiler, "compile_cubin", None)
    assert cuda_compiler.cubin(source, "sm_90", tmp_path) == first
    monkeypatch.setattr(cuda_compiler, "version", lambda: "1.0")  # another NVRTC: compile again
    with pytest.raises(TypeError):
        cuda_compiler.cubin(source, "sm_90", tmp_path)
    assert not list(tmp_path.glob("*.part"))


@needs_nvrtc
def test_a_failed_compilation_shows_the_message(tmp_path):
    with pytest.raises(Exception, match="unknown_type"):
        cuda_compiler.cubin("unknown_type x;", "sm_90", tmp_path)
    assert not list(tmp_path.glob("*.cubin"))


@needs_nvrtc
def test_architectures_that_nvrtc_compiles_for():
    assert {"sm_80", "sm_90", "sm_100"} <= cuda_compiler.architectures()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    cuda_compiler.why_missing.cache_clear()
    try:
        assert "cuda.core" in (cuda_compiler.why_missing() or "")
    finally:
        cuda_compiler.why_missing.cache_clear()


@needs_nvrtc
@pytest.mark.slow
def test_registers_and_spills_are_within_their_ceilings():
    """All kernels of three models, both precisions, three architectures, if changed since."""
    variants = kernel_budget.variants()
    budget = json.loads(kernel_budget.BUDGET.read_text())
    ceilings = budget["ceilings"]
    labels = {variant.label for variant in variants}
    assert labels == ceilings.keys() == budget["sources"].keys()
    chosen = kernel_budget.changed(variants)
    sample = variants[:: len(variants) // 4]  # and some of the others
    found = kernel_budget.measure({*chosen, *sample}, kernel_budget.ARCHITECTURES, jobs=2)
    assert kernel_budget.compare(found, ceilings) == []
    spilled = {label for label, n in ceilings.items() if any(local for _, local in n.values())}
    single = {label for label in spilled if label.endswith("float32")}
    assert single <= {"contraction 0e+1o+2e double float32"}


@needs_nvrtc
def test_a_changed_source_is_found_and_another_compiler_changes_all(monkeypatch):
    chosen = [v for v in kernel_budget.variants() if "sum" in v.label]
    digests = kernel_budget.digests_of(chosen)
    assert len(set(digests.values())) == len(chosen) > 1
    monkeypatch.setattr(cuda_compiler, "version", lambda: "1.0")
    assert kernel_budget.changed(chosen) == chosen
    version = json.loads(kernel_budget.BUDGET.read_text())["nvrtc"]
    monkeypatch.setattr(cuda_compiler, "version", lambda: version)
    assert kernel_budget.changed(chosen) == []
    kernel = chosen[0].kernel
    monkeypatch.setattr(type(kernel.cuda), "source", lambda self, *_: "other")
    assert kernel_budget.changed(chosen) == chosen


def test_what_is_above_its_ceiling_is_reported():
    ceilings = {"sum 1 float32": {"sm_90": [32, 0]}}
    assert kernel_budget.compare({"sum 1 float32": {"sm_90": [32, 0]}}, ceilings) == []
    (problem,) = kernel_budget.compare({"sum 1 float32": {"sm_90": [40, 0]}}, ceilings)
    assert "40 registers" in problem
    (problem,) = kernel_budget.compare({"sum 1 float32": {"sm_90": [30, 8]}}, ceilings)
    assert "8 bytes of local memory" in problem
    (problem,) = kernel_budget.compare({"sum 1 float32": {"sm_80": [30, 0]}}, ceilings)
    assert "--write" in problem
