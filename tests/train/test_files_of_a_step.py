"""The files that a reader opens to follow one training step: few, in a known order, no new ones.

``mace-train train`` runs in this process, and a profile function sees every call of a function of
the package. The files on the stack when a batch is made, and when a compiled contraction is called,
are the path through a step; the files that run between two batches are those of the whole step. The
functions that train/README.md tells a reader to read must be among those that were called.
"""

import re
import sys
from pathlib import Path
from types import FrameType

import pytest

import mace_train
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.train import train as train_module
from tests.conftest import TINY_MODEL, run_command

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")

PACKAGE = Path(mace_train.__file__).parent
LOADER, CONTRACTION = "data/loading/loader.py", "ops/symmetric_contraction.py"
KERNEL = "ops/cpp/kernel.py"

PATH = [  # from the command to the kernel
    "cli.py",
    "train/train.py",
    "train/epoch.py",
    LOADER,
    "train/step.py",
    "model/derivatives.py",
    "model/mace.py",
    "model/blocks.py",
    "model/contraction.py",
    CONTRACTION,
    "ops/torch_library.py",
    "ops/dispatch.py",
    KERNEL,
]
BESIDE = [  # what else runs between two batches
    "balance/bins.py",
    "balance/costs.py",
    "balance/epoch_plan.py",
    "balance/plan.py",
    "data/graph.py",
    "data/loading/edge_indices.py",
    "data/loading/packed.py",
    "data/shards/batch.py",
    "data/shards/gather.py",
    "data/shards/hdf5.py",
    "data/shards/reader.py",
    "data/shards/shard_set.py",
    "distributed/world.py",
    "model/batch_index.py",
    "model/constant.py",
    "model/convolution.py",
    "model/interactions/agnostic.py",
    "model/interactions/interaction.py",
    "model/linear.py",
    "model/linear_forms.py",
    "model/matmul_precision.py",
    "model/radial.py",
    "model/readouts.py",
    "model/spherical_harmonics.py",
    "ops/backends.py",
    "ops/convolution.py",
    "ops/convolution_kernels.py",
    "ops/cpp/compiler.py",
    "ops/cpp/small_products.py",
    "ops/perceptron.py",
    "ops/row_sums.py",
    "ops/trilinear.py",
    "progress.py",
    "train/ema.py",
    "train/gradients.py",
    "train/loss.py",
    "train/lr_schedule.py",
    "train/optim.py",
    "train/run.py",
    "train/timing.py",
    "train/updater.py",
]


class Calls:
    """The files of the package whose functions are called, as a profile function of Python."""

    def __init__(self) -> None:
        self.at_batch: list[str] = []  # files on the stack, outermost first
        self.at_kernel: list[str] = []
        self.n_batches = 0
        self.of_step: set[str] = set()  # from the second batch to the third
        self.functions: set[tuple[str, str]] = set()  # (file, qualified name), of the whole epoch
        self._files: dict[str, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        file = self._file(frame)
        if file is None:
            return
        self.functions.add((file, _name(frame)))
        if self.n_batches == 2:
            self.of_step.add(file)
        if (file, frame.f_code.co_name) == (LOADER, "packed"):
            self.n_batches += 1
            if not self.at_batch:
                self.at_batch = self._stack(frame)
                self.functions |= self._functions_on_stack(frame)
        if (file, frame.f_code.co_name) == (KERNEL, "run") and not self.at_kernel:
            stack = self._stack(frame)
            self.at_kernel = stack if CONTRACTION in stack else []

    def _file(self, frame: FrameType) -> str | None:
        """The file of a frame, relative to the package; None outside of it."""
        name = frame.f_code.co_filename
        if name not in self._files:
            path = Path(name)
            inside = path.is_relative_to(PACKAGE)
            self._files[name] = path.relative_to(PACKAGE).as_posix() if inside else None
        return self._files[name]

    def _stack(self, innermost: FrameType) -> list[str]:
        files = [file for frame in _frames(innermost) if (file := self._file(frame)) is not None]
        return list(dict.fromkeys(files))

    def _functions_on_stack(self, innermost: FrameType) -> set[tuple[str, str]]:
        """Those that were called before the profile function was there, too."""
        frames = _frames(innermost)
        return {(file, _name(f)) for f in frames if (file := self._file(f)) is not None}


def _frames(innermost: FrameType) -> list[FrameType]:
    """The stack, outermost first."""
    frames = [innermost]
    while frames[-1].f_back is not None:
        frames.append(frames[-1].f_back)
    return frames[::-1]


def _name(frame: FrameType) -> str:
    """The name of a function with its class; one inside of another is named as its member."""
    return frame.f_code.co_qualname.replace(".<locals>", "")


def stations() -> list[tuple[str, str]]:
    """(file, function) of the table of train/README.md, in its order."""
    text = (PACKAGE / "train" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| ([^|]+) \|", text, flags=re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    found = [(file, name) for _, file, cell in rows for name in re.findall(r"`([\w.]+)`", cell)]
    assert {file for file, _ in found} == {file for _, file, _ in rows}
    return found


@pytest.fixture(scope="module")
def calls(prepared, tmp_path_factory) -> Calls:
    """Those of an epoch of a small training."""
    calls, fit = Calls(), train_module.fit

    def profiled(*arguments):
        before = sys.getprofile()
        sys.setprofile(calls)
        try:
            return fit(*arguments)
        finally:
            sys.setprofile(before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "fit", profiled)
        run_command(
            "train",
            f"data_dir={prepared}",
            f"output={tmp_path_factory.mktemp('step') / 'run'}",
            "max_num_epochs=1",
            "batching.batch_size=4",
            "cluster=cpu",
            "cluster.num_workers=0",
            "logger.progress=false",
            *TINY_MODEL,
        )
    assert calls.n_batches > 3
    return calls


def test_the_path_from_the_command_to_the_kernel_is_thirteen_files(calls):
    path = list(dict.fromkeys([*calls.at_batch, *calls.at_kernel]))
    assert path == PATH
    assert len(path) <= 13


def test_a_step_runs_no_other_files_than_these(calls):
    assert set(PATH) - {"cli.py", "train/train.py"} <= calls.of_step  # a whole step was watched
    assert sorted(calls.of_step - set(PATH) - set(BESIDE)) == []


def test_the_functions_to_read_are_called(calls):
    found = stations()
    assert [station for station in found if station not in calls.functions] == []
    files = list(dict.fromkeys(file for file, _ in found))
    assert [file for file in files if file in PATH] == PATH  # every file of the path, in its order
