"""The measurements of a campaign on a GPU, the most valuable first.

A measurement is one command with a limit of its own, below nine minutes, and a guess of what it
takes, with which the campaign decides what still fits. ``{json}`` in a command is where the
measurement writes its rows, ``{folder}`` is where pictures go. A rehearsal on a CPU has a command
of its own; where there is none, the measurement needs a GPU.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / "scripts" / "bench"
LONGEST_S = 530
TUNING = BENCH / "gpu" / "tune.py"
OPENEQUIVARIANCE = "openequivariance"
_BUILT = (
    "import openequivariance as o, sys; print(o.BUILT_EXTENSION_ERROR); "
    "sys.exit(0 if o.BUILT_EXTENSION else 3)"
)


@dataclass(frozen=True)
class Measurement:
    """One command; ``rows`` says whether it writes rows, or is passed if it exits with 0."""

    name: str
    command: tuple[str, ...]
    estimate_s: int
    rehearsal: tuple[str, ...] | None = None
    limit_s: int = LONGEST_S
    rows: bool = True
    with_openequivariance: bool = False  # needs its folder; see ``--openequivariance``


def measurements() -> list[Measurement]:
    """All of them, in order."""
    return [
        Measurement(
            "facts",
            _gpu("facts"),
            90,
            _gpu("facts", "--device cpu --channels 4"),
        ),
        _tests("tests-ops", "tests/ops", 180, "not beyond", parallel=True),
        Measurement(
            "contraction-float32",
            _gpu("kernel_times", "--operations contraction --dtypes float32 " + _CUEQ),
            60,
            _gpu("kernel_times", "--operations contraction --dtypes float32 " + _TINY),
        ),
        Measurement(
            OPENEQUIVARIANCE,
            (sys.executable, "-W", "ignore", "-c", _BUILT),
            90,
            rows=False,
            with_openequivariance=True,
        ),
        Measurement(
            "convolution-float32",
            _gpu("kernel_times", "--operations convolution --dtypes float32 " + _CUEQ_AND_OEQ),
            90,
            _gpu("kernel_times", "--operations convolution --dtypes float32 " + _TINY),
            with_openequivariance=True,
        ),
        Measurement(
            "steps-float32",
            _gpu("training_step", "--models M L --profile"),
            180,
            _gpu("training_step", "--models M --channels 4 --atoms 20 --repeats 1 --device cpu"),
            with_openequivariance=True,
        ),
        Measurement(
            "captured",
            _gpu("training_step", "--batch molecules --models M L --profile"),
            120,
            _gpu(
                "training_step",
                "--batch molecules --models M --channels 4 --repeats 1 --device cpu",
            ),
        ),
        Measurement(
            "steps-kinds",
            _gpu("training_step", "--models D N H --profile"),
            300,
            _gpu("training_step", "--models D N --channels 4 --atoms 20 --repeats 1 --device cpu"),
            with_openequivariance=True,
        ),
        _tests("tests-model", "tests/model", 60),
        _tests("tests-train", "tests/train", 120),
        Measurement(
            "contraction-float64",
            _gpu("kernel_times", "--operations contraction --dtypes float64 " + _CUEQ),
            60,
            _gpu("kernel_times", "--operations contraction --dtypes float64 " + _TINY),
        ),
        Measurement(
            "convolution-float64",
            _gpu("kernel_times", "--operations convolution --dtypes float64 " + _CUEQ_AND_OEQ),
            90,
            _gpu("kernel_times", "--operations convolution --dtypes float64 " + _TINY),
            with_openequivariance=True,
        ),
        Measurement(
            "steps-float64",
            _gpu("training_step", "--models M64 L64"),
            240,
            _gpu("training_step", "--models M64 --channels 4 --atoms 20 --repeats 1 --device cpu"),
        ),
        *_tuning(),
        Measurement(
            "precision",
            _bench("precision", "--device cuda"),
            120,
            _bench("precision", "--channels 4 --repeats 1"),
        ),
        Measurement(
            "memcheck",
            _gpu("sanitize", "--tools memcheck"),
            180,
        ),
        Measurement(
            "racecheck",
            _gpu("sanitize", "--tools racecheck"),
            180,
        ),
        Measurement(
            "scan",
            _gpu("kernel_times", "--plot {folder}/scan.png --peers"),
            90,
            _gpu(
                "kernel_times",
                "--plot {folder}/scan.png --device cpu --atoms 16 --edges 64 --repeats 1 --peers",
            ),
        ),
        _tests("tests-large", "tests/ops", 90, "beyond"),
        Measurement(
            "ranks",
            _bench("data_parallel", "--device cuda --work {folder}/ranks"),
            60,
            _bench("data_parallel", "--channels 4 --steps 1 --work {folder}/ranks"),
        ),
        Measurement(
            "compile",
            _bench("compile_kernels", "--device cuda --repeats 2"),
            120,
            _bench("compile_kernels", "--repeats 1"),
        ),
    ]


_CUEQ = "--peers cuEquivariance"
_CUEQ_AND_OEQ = "--peers cuEquivariance OpenEquivariance"
_TINY = "--device cpu --atoms 10 --edges 60 --degrees 1 --repeats 1 --peers e3nn"


def _gpu(script: str, options: str = "") -> tuple[str, ...]:
    return _bench(f"gpu/{script}", options)


def _bench(script: str, options: str = "") -> tuple[str, ...]:
    return (sys.executable, str(BENCH / f"{script}.py"), "--json", "{json}", *options.split())


def _tests(
    name: str, folder: str, estimate_s: int, chosen: str = "", *, parallel: bool = False
) -> Measurement:
    """Tests marked gpu; the rehearsal collects them, as none can run.

    Only files that have some, for others import what the machine may lack; and a warning of another
    version of a package is none of ours there.
    """
    files = [p for p in sorted((ROOT / folder).rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default"]
    command += ["--durations=10", *map(str, files)]
    command += ["-k", chosen] if chosen else []
    spread = ["-n", "8"] if parallel else []
    return Measurement(
        name,
        (*command, *spread),
        estimate_s,
        (*command, "--collect-only"),
        rows=False,
    )


def _tuning() -> list[Measurement]:
    """The search for the choices that only a clock can make, where this checkout has it."""
    if not TUNING.exists():
        return []
    return [Measurement("tuning", _gpu("tune", "--minutes 5"), 330)]
