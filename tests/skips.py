"""Skipped tests are counted by reason, and a run fails where more are skipped than is allowed.

A suite of which half is skipped is green, too. So every reason to skip is in ``LIMITS``, with the
largest number of tests that it may skip; a reason that is not there may skip none. The numbers are
upper bounds, about a tenth above the tests that have the reason, so that parts of the suite can be
run and a few tests added. Counts are of all processes of pytest-xdist.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class Limit:
    """At most ``most`` skips whose reason matches ``pattern``; none where ``variable`` is set."""

    name: str
    pattern: str
    most: int
    variable: str | None = None  # of the environment

    @property
    def allowed(self) -> int:
        """The bound in this environment."""
        return 0 if self.variable and os.environ.get(self.variable) else self.most


LIMITS = (
    Limit("no CUDA device", r"^(no|needs a|needs two) CUDA devices?$", 160),
    Limit("too small a GPU", r"GiB of free device memory$", 2),
    Limit("a GPU where there should be none", r"PyTorch does see a GPU here$", 1),
    Limit("no NVRTC or CUDA bindings", r"needs the extra cuda", 140),
    Limit("no C++ compiler", r"^(no|needs a) C\+\+ compiler$", 230),
    Limit("no overcommitment of memory", r"(can't|cannot) allocate memory", 1),
    Limit("not Linux", r"(finds ranks in|reads) /proc$|^needs /dev/full$", 11),
    Limit("no network namespaces", r"network namespaces are not permitted here", 1),
    Limit("not root", r"^needs root, ", 14),
    Limit("no mounts", r"^file systems cannot be mounted here: ", 8),
    Limit("no Slurm", r"^no Slurm here: ", 14, "MACE_TRAIN_REQUIRE_SLURM"),
    Limit("no browser", r"no Chromium here: ", 12, "MACE_TRAIN_REQUIRE_CHROMIUM"),
    Limit("no shared data", r"real data set .* is not here", 8),
    Limit("no git checkout", r"not a git checkout$", 6),
    Limit("no source of mace-torch", r"pip cannot fetch the (source|wheel) of mace-torch", 3),
    Limit("no mace-torch", r"mace-torch is not installed|needs the extra interop", 120),
    Limit("no e3nn, or another release", r"could not import 'e3nn|other releases of e3nn", 18),
    Limit("no peer of a script", r"^[\w.]+ is not installed$", 30),
    Limit("no MPI", r"mpi4py is not installed|there is no mpiexec|could not import 'mpi4py", 12),
    Limit("no OR-Tools", r"OR-Tools is not installed", 1),
    Limit("no torch-sim", r"needs the extra torchsim", 6),
    Limit("no PyTorch Geometric", r"PyTorch Geometric is not installed", 3),
    Limit("no LMDB", r"extra 'lmdb' is missing", 2),
    Limit("no loggers", r"needs the extra loggers", 2),
    Limit("no tblite", r"needs? tblite$", 2),
    Limit(
        "no cuEquivariance, Optuna or submitit",
        r"could not import '(cuequivariance_torch|optuna|hydra_plugins)",
        5,
    ),
)


@dataclass(eq=False)
class SkipLimits:
    """A pytest plugin: counts skips, shows them by reason, and holds the run to the limits."""

    limits: Sequence[Limit] = LIMITS
    reasons: Counter[str] = field(default_factory=Counter)  # of tests
    modules: dict[str, str] = field(default_factory=dict)  # that are skipped as a whole: reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that was skipped, in this process or in a worker of xdist."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[_reason(report)] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that skips itself."""
        if report.skipped:
            self.modules[report.nodeid] = _reason(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """A worker of xdist has ended: these do not report the modules that they skip."""
        self.modules |= getattr(node, "workeroutput", {}).get("skipped_modules", {})

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run that would pass fails."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["skipped_modules"] = self.modules
        elif self.problems() and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The numbers of skips by reason, then what is not allowed."""
        counts = self.counts()
        if counts:
            terminalreporter.section("tests skipped, by reason")
        for limit, n in counts.items():
            terminalreporter.write_line(f"{n:5d} (at most {limit.allowed}): {limit.name}")
        for problem in self.problems():
            terminalreporter.write_line(f"ERROR: {problem}", red=True)

    def counts(self) -> dict[Limit, int]:
        """Skips by limit; a reason without one has a limit of its own, of no skips."""
        counts: dict[Limit, int] = {}
        for reason, n in (self.reasons + Counter(self.modules.values())).items():
            limit = next(
                (limit for limit in self.limits if re.search(limit.pattern, reason)),
                Limit(reason, re.escape(reason), 0),
            )
            counts[limit] = counts.get(limit, 0) + n
        return counts

    def problems(self) -> list[str]:
        """A sentence for every limit that is exceeded."""
        return [
            f"{n} skipped, at most {limit.allowed} allowed: {limit.name}; remove the cause, or "
            "change LIMITS in tests/skips.py"
            for limit, n in self.counts().items()
            if n > limit.allowed
        ]


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or module is skipped, on one line."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(text.removeprefix("Skipped: ").split())
