"""Checks of the environment, on every rank, as a table that ends with PASS or FAIL.

    mace-train doctor                                          this machine
    srun mace-train doctor data_dir=prepared                   every rank that a training would have

Each check gives results: ok, warn (works, but slowly or not as expected) or FAIL with the remedy.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from mace_train.console import Console
from mace_train.distributed.launcher import describe_launch
from mace_train.distributed.world import World, open_world
from mace_train.doctor import environment, network
from mace_train.doctor.check_result import CheckResult, Verdict
from mace_train.errors import InputError
from mace_train.folders import existing_folder
from mace_train.settings import DoctorSettings

_MARKS = {
    Verdict.OK: Text("ok"),
    Verdict.WARN: Text("warn", style="yellow"),
    Verdict.FAIL: Text("FAIL", style="red"),
}


@dataclass(frozen=True)
class Check:
    """One group of checks; its function is called by all ranks together."""

    name: str
    examine: Callable[[World, DoctorSettings], list[CheckResult]]


CHECKS = (
    Check("versions", environment.versions),
    Check("optional", environment.optional),
    Check("devices", environment.devices),
    Check("threads", environment.threads),
    Check("compiler", environment.compiler),
    Check("kernels", environment.kernels),
    Check("all-reduce", network.all_reduce),
    Check("names", network.names),
    Check("data", environment.data),
)


def examine(settings: DoctorSettings) -> list[CheckResult]:
    """All results (on rank 0); ``SystemExit`` (1) if one of them is FAIL.

    Raises ``InputError`` where the ranks cannot join.
    """
    if settings.data_dir is not None:
        existing_folder("data_dir", settings.data_dir)
    try:
        started = describe_launch()
        with open_world(settings.cluster) as world:
            results = [("launch", CheckResult(Verdict.OK, started))]
            for check in CHECKS:
                results += [(check.name, found) for found in check.examine(world, settings)]
            failed = world.broadcast(any(found.verdict is Verdict.FAIL for _, found in results))
            if world.is_main:
                _print(results, failed)
    except InputError as error:
        raise type(error)(f"doctor: FAIL: {error}") from None
    if failed:
        raise SystemExit(1)
    return [found for _, found in results]


def _print(results: list[tuple[str, CheckResult]], failed: bool) -> None:
    table = Table("", "", "found", show_edge=False)
    before = ""
    for name, found in results:
        text = found.text if found.remedy is None else f"{found.text}\n-> {found.remedy}"
        table.add_row(name if name != before else "", _MARKS[found.verdict], text)
        before = name
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    counts = Counter(found.verdict for _, found in results)
    verdict = "FAIL" if failed else "PASS"
    console.print(f"{verdict}: {counts[Verdict.FAIL]} failed, {counts[Verdict.WARN]} warnings")
