"""A campaign: many cases, drawn from a seed, several at a time; what became of them."""

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz import command_lines, environments, files, settings_cases
from tests.fuzz.case import Case, MakeCase
from tests.fuzz.fixtures import Fixtures
from tests.fuzz.judge import Verdict, contents, judge, litter_of
from tests.fuzz.process import MOST_SECONDS, Result, Running, fork, start

KINDS: dict[str, tuple[int, MakeCase]] = {  # share of the cases, in per cent
    "settings": (36, settings_cases.make),
    "command lines": (10, command_lines.make),
    "environment": (10, environments.make),
    "extxyz": (14, files.extxyz),
    "experiment.yaml": (6, files.experiment),
    "statistics.json": (3, files.statistics),
    "small JSON": (3, files.small_json),
    "mace-torch YAML": (4, files.mace_config),
    "run folders": (4, files.folder_of_a_run),
    "checkpoints": (6, files.checkpoint),
    "state dicts": (1, files.state_dict),
    "shards": (3, files.shards),
}
LONG_BOX = 2.5  # fair seconds for what may run for long


@dataclass
class Record:
    """One case and its verdict."""

    number: int
    kind: str
    what: str
    words: list[str]
    environment: dict[str, str]
    outcome: str
    says: str
    code: int
    seconds: float
    separate: bool  # a process of its own
    err: str


class Campaign:
    """Draws and runs cases ``first`` to ``last`` of a seed."""

    def __init__(self, fixtures: Fixtures, folder: Path, seed: int, share_of_processes: float):
        self.fixtures, self.folder, self.seed = fixtures, folder, seed
        self.share_of_processes = share_of_processes
        environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith("PYTHON")}
        self.environment = environment | {"OMP_NUM_THREADS": "1", "HOME": str(folder)}
        self._running: dict[int, tuple[str, Case, bool, Running, dict[str, str]]] = {}

    def run(self, numbers: list[int], jobs: int, report: Callable[[Record], None]) -> list[Record]:
        """All records, in the order in which the cases end."""
        records, waiting = [], list(reversed(numbers))
        try:
            while waiting or self._running:
                while waiting and len(self._running) < jobs:
                    self._start(waiting.pop())
                for number in list(self._running):
                    record = self._poll(number)
                    if record is not None:
                        records.append(record)
                        report(record)
                time.sleep(0.01)
        finally:
            for *_, running, _ in self._running.values():
                running.kill("hang")
        return records

    def draw(self, number: int, work: Path) -> tuple[str, Case, bool]:
        """(kind, case, whether in a process of its own) of a number; writes the case's files."""
        rng = random.Random(f"{self.seed} {number}")
        kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        case = KINDS[kind][1](self.fixtures, rng, work)
        case.words = [word.replace("\0", "") for word in case.words]
        case.environment = {k: v.replace("\0", "") for k, v in case.environment.items()}
        return kind, case, rng.random() < self.share_of_processes

    def _start(self, number: int) -> None:
        place = self.folder / str(number)
        shutil.rmtree(place, ignore_errors=True)
        (place / "work").mkdir(parents=True)
        kind, case, separate = self.draw(number, place / "work")
        before = contents(place / "work")
        environment = self.environment | {"TMPDIR": str(place)} | case.environment
        box = LONG_BOX if case.runs_long else MOST_SECONDS
        running = (start if separate else fork)(case.words, environment, place, box)
        self._running[number] = (kind, case, separate, running, before)

    def _poll(self, number: int) -> Record | None:
        kind, case, separate, running, before = self._running[number]
        result = running.poll()
        if result is None:
            return None
        del self._running[number]
        place = self.folder / str(number)
        verdict = self._judge(case, result, place, before)
        shutil.rmtree(place, ignore_errors=True)
        return Record(number, kind, case.what, case.words, case.environment, verdict.outcome,
                      verdict.says, result.code, round(result.seconds, 2), separate,
                      result.err[-4000:])  # fmt: skip

    def _judge(self, case: Case, result: Result, place: Path, before: dict[str, str]) -> Verdict:
        left = litter_of(before, contents(place / "work")) if result.code == 2 else []
        usual = ("work", "stdout", "stderr", "torchinductor_root")  # the last is PyTorch's
        beside = [p.name for p in place.iterdir() if p.name not in usual]
        return judge(case, result, left + [f"../{name}" for name in beside])


KEPT = ("PATH", "LANG", "XDG_CACHE_HOME", "MPLBACKEND", "MPLCONFIGDIR", "NUMBA_CACHE_DIR")


def table(records: list[Record]) -> str:
    """Counts by kind and outcome."""
    outcomes = sorted({r.outcome for r in records}, key=lambda o: (o.isupper(), o))
    counts = Counter((r.kind, r.outcome) for r in records)
    width = max(len(kind) for kind in KINDS)
    rows = [f"{'':{width}}  " + "  ".join(outcomes)]
    for kind in [*KINDS, "all"]:
        cells = [
            sum(n for (k, o), n in counts.items() if o == outcome and kind in (k, "all"))
            for outcome in outcomes
        ]
        if any(cells):
            rows.append(
                f"{kind:{width}}  "
                + "  ".join(f"{n:>{len(o)}}" for n, o in zip(cells, outcomes, strict=True))
            )
    return "\n".join(rows)


def failures(records: list[Record]) -> list[Record]:
    """The records of cases that did not end as they should, by number."""
    return sorted((r for r in records if r.outcome.isupper()), key=lambda r: r.number)


def write(path: Path, records: list[Record], seed: int) -> None:
    """All counts and failures as JSON."""
    counts = Counter((r.kind, r.outcome) for r in records)
    content = {
        "seed": seed,
        "inputs": len(records),
        "separate_processes": sum(r.separate for r in records),
        "counts": [{"kind": k, "outcome": o, "count": n} for (k, o), n in sorted(counts.items())],
        "failures": [asdict(record) for record in failures(records)],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n")
