"""The CUDA kernels under compute-sanitizer: no access out of bounds, no race in shared memory.

    python scripts/bench/gpu/sanitize.py --json sanitize.json [--tools memcheck racecheck]

The kernels of both operations, for features 0e+1o, in both precisions and with numbers of channels
that do and do not fill a block, for the value, its gradients, and the gradients of those, on few
atoms, as everything is many times slower there. They are compiled before, outside of the tool.
PyTorch gives every tensor its own memory, so that an access beyond its end is one. Kernels of
PyTorch are left out, by the name of ours. --work runs the same without the tool.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[1:1] = [str(ROOT), str(ROOT / "scripts" / "bench")]

import torch  # noqa: E402
from goals import Row, describe, reaches, row, write  # noqa: E402

from tests.ops.cuda import cases  # noqa: E402

SUMMARY = {  # what the tools print at their end
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
    "synccheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
}
OURS = ("--kernel-name", "kne=run")
FINISHED = "all kernels have run"


def main() -> int:
    """Run the tools; 1 if one finds anything, 2 if one cannot run."""
    arguments = _arguments()
    if arguments.work:
        work()
        return 0
    if not torch.cuda.is_available() or shutil.which("compute-sanitizer") is None:
        print(
            "needs a CUDA device and compute-sanitizer, of the CUDA toolkit, on the PATH; "
            "--work runs the kernels without it",
            file=sys.stderr,
        )
        return 2
    work()  # compiles them
    rows: list[Row] = []
    for tool in arguments.tools:
        found = errors_of(tool)
        if found is None:
            print(f"compute-sanitizer --tool {tool} did not come to its end", file=sys.stderr)
            return 2
        # one more, as no errors at all are as many as are allowed
        rows.append(row(f"1 + errors that {tool} finds", 1.0 + found, {"none": 1.0}, 1.0))
        print(describe(rows[-1]), flush=True)
        write(arguments.json, rows, complete=tool == arguments.tools[-1])
    return 0 if all(reaches(row) for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tools", nargs="+", choices=SUMMARY, default=["memcheck", "racecheck"])
    parser.add_argument("--work", action="store_true", help="run the kernels, without a tool")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def errors_of(tool: str) -> int | None:
    """How many errors a tool finds; None if it, or the work, did not come to its end."""
    for chosen in (OURS, ()):  # all kernels, should the tool not know the option
        command = ["compute-sanitizer", "--tool", tool, *chosen]
        command += [sys.executable, __file__, "--work"]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        print(done.stdout[-4000:], done.stderr[-4000:], flush=True)
        found = SUMMARY[tool].search(done.stdout + done.stderr)
        if found and FINISHED in done.stdout:
            return int(found[1])
    return None


def work() -> None:
    """Every kernel of both operations, once."""
    for dtype in (torch.float32, torch.float64):
        for n_channels in (33, 128):
            for case in (
                cases.contraction((3, 1, 3), 19, n_channels, dtype),
                cases.messages(1, 40, n_channels, dtype, 7),
            ):
                function, inputs = case.on(cases.GPU), cases.on_gpu(case.inputs)
                for differentiated in (range(1), range(len(inputs))):
                    cases.everything(function, inputs, differentiated)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(FINISHED)


if __name__ == "__main__":
    sys.exit(main())
