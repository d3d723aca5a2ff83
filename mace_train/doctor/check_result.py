"""Results of checks, and how those of all ranks are combined."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mace_train.distributed.world import World


class Verdict(Enum):
    """Whether a check passed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class CheckResult:
    """One line of the table: verdict, text, and how to fix it."""

    verdict: Verdict
    text: str
    remedy: str | None = None


def same_everywhere(world: World, value: str, what: str, remedy: str) -> list[CheckResult]:
    """The value if all ranks have it, else FAIL with the values and how many ranks have each."""
    counts = Counter(world.gather_all(value))
    if len(counts) == 1:
        return [CheckResult(Verdict.OK, f"{what} {value}")]
    text = "; ".join(f"{found} on {n} ranks" for found, n in counts.most_common())
    return [CheckResult(Verdict.FAIL, f"{what} differ: {text}", remedy)]


def first_problem(world: World, problem: str | None, ok: str, remedy: str) -> list[CheckResult]:
    """``ok`` if no rank has a problem, else FAIL with the first one and their number."""
    problems: list[Any] = [text for text in world.gather_all(problem) if text is not None]
    if not problems:
        return [CheckResult(Verdict.OK, ok)]
    text = f"{problems[0]} ({len(problems)} of {world.size} ranks)"
    return [CheckResult(Verdict.FAIL, text, remedy)]
