"""Whether a command ended as it should: what is a failure, and what distinguishes failures."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.case import Case
from tests.fuzz.process import Result

MOST_LINES = 6
LINE = 120  # characters of a terminal's line
REMEDY = re.compile(  # words that say what to do, or what is allowed
    r"\b(give|use|set|must|choose|run|write|writes|such as|see|did you mean|valid|needs?|check"
    r"|install|remove|rename|name|quote|quoted|at least|at most|greater than|correct|one of|again"
    r"|wait|start|add|change|for example|instead|make|another|leave|is not key=value|or|once"
    r"|no such [\w ]*(file|folder)|lists the settings|they have|found|supported|restore"
    r"|heads (of the data )?are|keep|lower|point|unset|convert|makes one)\b"
)
ERROR = re.compile(r"^mace-train: (\[rank \d+\] )?error: ", re.M)
TEMPORARY = re.compile(r"(\.partial|\.tmp|~)$|^\.\./|^(outputs|multirun)\b")
CONTINUED = ".out.partial"  # what preprocess continues from (data/README.md)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one case: right, or a kind of failure with what it says."""

    outcome: str
    says: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is a failure: their names are in capitals."""
        return self.outcome.isupper()


def judge(case: Case, result: Result, litter: list[str]) -> Verdict:
    """What to call the end of a command; ``litter`` are new or changed files."""
    text = result.err + result.out
    if result.fate == "tasks":
        return Verdict("TASKS", "too many processes or threads")
    if result.fate == "hang":
        return Verdict("HANG", "did not end, nor after SIGINT")
    if "Traceback (most recent call last)" in text:
        return Verdict("TRACEBACK", last_of_traceback(text))
    if result.fate == "interrupted":
        if case.runs_long and result.code in (0, 130):
            return Verdict("ran until it was interrupted")
        return Verdict("HANG", f"over the limit; exit code {result.code} after SIGINT")
    if result.code < 0:
        return Verdict("SIGNAL", f"{-result.code}")
    if result.code == 1 and case.words[:1] == ["doctor"] and "FAIL" in result.out:
        return Verdict("accepted")  # what it has found
    if result.code not in case.codes:
        return Verdict("CODE", f"{result.code}: {(result.err.strip().splitlines() or [''])[-1]}")
    if result.code == 0:
        if case.out_of_range:
            return Verdict("ACCEPTED", case.out_of_range)
        return Verdict("accepted")
    return _of_message(result.err, litter)


def _of_message(err: str, litter: list[str]) -> Verdict:
    found = list(ERROR.finditer(err))
    if len(found) != 1:
        return Verdict("NOT ONE MESSAGE", f"{len(found)}: {err.strip()[-200:]}")
    message = err[found[0].end() :].strip()
    plain = re.sub(r"(/[\w.\-]+){2,}", "/path", message)
    n_lines = sum(1 + len(line) // LINE for line in plain.splitlines())
    if n_lines > MOST_LINES:
        return Verdict("LONG MESSAGE", plain[:160])
    if not REMEDY.search(plain):
        return Verdict("NO REMEDY", plain[:300])
    litter = [name for name in litter if not name.startswith(CONTINUED)]
    if litter == ["out"] or any(TEMPORARY.search(name) for name in litter):
        return Verdict("LITTER", f"{', '.join(litter[:4])}: {plain[:100]}")
    return Verdict("refused")


def last_of_traceback(text: str) -> str:
    """The place in this package and the error of the last traceback."""
    places = re.findall(r'File "[^"]*?((?:mace_train|tests)/[^"]+)", line (\d+)', text)
    ours = [f"{name}:{line}" for name, line in places if "tests/fuzz" not in name]
    errors = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Warning|Exit)\w*(?::.*)?$", text, re.M
    )
    return f"{ours[-1] if ours else ''} {(errors or [''])[-1][:160]}"


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder with a digest."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def litter_of(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What an error has left: files that are new, changed or gone."""
    names = sorted({*before, *after})
    return [name for name in names if before.get(name) != after.get(name)]
