"""Words that the field does not use: none of them in names, comments, texts or pages.

A word is looked for in identifiers (its parts between underscores and capitals), and in comments,
docstrings, messages and Markdown. The message lists file, line and the field's word.
"""

import fnmatch
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.tree import ROOT, tracked

TEXT = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
NAMES, TEXTS = "names", "texts"
OF_DATA = tuple(f"*/{name}/*" for name in ("data", "evaluate", "report", "settings", "train"))


@dataclass(frozen=True)
class Word:
    """A private word or phrase, as a regular expression over lower case."""

    pattern: str
    better: str
    where: tuple[str, ...] = (NAMES, TEXTS)
    only: tuple[str, ...] = ("*",)  # patterns of the files it is looked for in
    allowed: tuple[str, ...] = ()  # patterns of files in which it is the field's word
    but: str | None = None  # what is no hit, such as the name of an extra


WORDS = (
    Word("crews?", "task pool"),
    Word("troubles?", "failure", but="troubleshooting"),
    Word("wish(es|ed)?", "flags"),
    Word("tall(y|ies)", "totals", allowed=("*/train/state.py",)),  # names in checkpoints
    Word("anew", "again"),
    Word("parts? ways", "diverge"),
    Word("referees?", "exact solver", but=r"mace-train\[[\w,]*referee|`referee`|extra referee"),
    Word(
        "archives?",
        "checkpoint(s); archives are tar and zip files",
        allowed=(
            "*/data/read/*",
            "tests/data/*",
            "*/settings/data.py",
            "*/data/README.md",
            "README.md",
            "CHANGELOG.md",
            "mace_train/guide/own_data.md",
            "tests/bad_input/*",
            "scripts/bench/data*.py",
            "tests/slurm/*",
            "tests/interop/test_their_tests.py",
            "tests/test_packaging.py",
            "tests/test_restricted_pickle.py",
        ),
        but="checkpoints=archive|archive.yaml|archivefail",
    ),
    Word("fill(s|ed|ing)? up", "pad, padded"),
    Word("rising", "ascending, increasing"),
    Word("loudly", "with an error in the log"),
    Word("for people", "human-readable"),
    Word("under (steady )?fire", "in a fault-injection test"),
    Word("announc(e|es|ed|ing|ement|ements)", "log, logged, with a notice"),
    Word("on (its|their|the) way", "in flight"),
    Word("lives? on", "continues"),
    Word("whoever", "the process that"),
    Word("as (it|they) stands?", "unchanged, as written"),
    Word("left behind", "left over, remaining"),
    Word("set aside", "renamed, kept apart"),
    Word("tak(e|es|en|ing) over", "continue, import, resume"),
    Word("stands? for", "means, represents"),
    Word("(says?|said|tells?) of", "about"),
    Word("deals?|dealt|dealing|deal out", "assign, distribute"),
    Word("pieces?", "range, part, chunk"),
    Word("lonely", "single, without neighbours"),
    Word("sets? the pace|keeper", "slowest rank, host process"),
    Word("signs? of life|signal life", "heartbeat, progress"),
    Word("(came|comes?|coming) apart", "unstable"),
    Word("hand(s|ed|ing)? over", "pass, transfer, export"),
    Word("made small", "minimised"),
    Word("mend(s|ed|ing)?", "fix, correct"),
    Word("tak(e|es|en|ing) up", "add"),
    Word("behind `?--`?", "after --", where=(TEXTS,)),
    Word("length of the (largest )?error of a force", "force error magnitude"),
    Word("sanity look", "quick checks"),
    Word("later sum|sum later", "all_reduce_async", where=(NAMES,)),
    Word("raise together", "raise_on_all_ranks", where=(NAMES,)),
    Word("from main", "broadcast_result", where=(NAMES,)),
    Word("slots?", "buffers", where=(NAMES,), only=("mace_train/data/*", "tests/data/*")),
    Word("lease", "buffer in use", where=(NAMES,)),
    Word("board", "task queue", where=(NAMES,), only=("*/distributed/*",)),
    Word("kinds", "config_types", where=(NAMES,), only=OF_DATA),
)
CLASSES = {
    "Slots": "SharedMemoryPool",
    "Crew": "TaskPool",
    "Alone": "InProcess",
    "Archive": "CheckpointManager",
    "Average": "EMA",
    "Phases": "StepTimer",
    "Trouble": "StepFailure",
    "Tally": "EpochTotals",
    "Described": "AtomsLike",
    "Parse": "ParseFn",
    "Frame": "RawStructure",
    "Piece": "FileRange, ShardRows",
    "Deal": "Assignment",
    "Places": "BatchIndex",
    "Sizes": "LayerSpec",
    "Forms": "E0Sources",
    "Form": "E0Source",
    "Finding": "CheckResult",
    "Ids": "StructureIds",
    "Outcome": "StepResult",
    "Started": "StepInFlight",
    "Kinds": "ConfigTypes",
}


@cache
def words_of(name: str) -> str:
    """The parts of an identifier, in lower case.

    >>> words_of("_InSlot"), words_of("raise_together"), words_of("E0Source")
    ('in slot', 'raise together', 'e0 source')
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return " ".join(part for part in apart.lower().split("_") if part)


def python_parts(text: str) -> Iterator[tuple[str, int, str]]:
    """(names or texts, line, content) of every identifier, and of every string and comment."""
    comment: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:  # lines of one comment belong together
            first = first if comment else token.start[0]
            comment.append(token.string.lstrip("# "))
            continue
        if comment and token.type != tokenize.NL:
            yield TEXTS, first, "\n".join(comment)
            comment = []
        if token.type in TEXT:
            yield TEXTS, token.start[0], token.string
        elif token.type == tokenize.NAME:
            yield NAMES, token.start[0], token.string


def page_parts(text: str) -> Iterator[tuple[str, int, str]]:
    """The paragraphs of a page without what it quotes: lines that begin with >, and old names,
    the first column of a table with the head "was"."""
    lines = ["" if line.startswith(">") else line for line in text.splitlines()]
    is_old = False
    for i, line in enumerate(lines):
        is_row = line.lstrip().startswith("|")
        is_old = is_row and (is_old or line.split("|")[1].strip() == "was")
        if is_old:
            lines[i] = line.split("|", 2)[2]
    yield TEXTS, 1, "\n".join(lines)


def found_in(path: str, text: str) -> list[str]:
    """ "file:line: word -> better" for every private word of a file."""
    hits = []
    parts = python_parts(text) if path.endswith(".py") else page_parts(text)
    for where, line, content in parts:
        if where == NAMES and content in CLASSES:
            hits.append(f"{path}:{line}: class {content} -> {CLASSES[content]}")
        shown = words_of(content) if where == NAMES else content
        for word in WORDS if ANY.search(shown) else ():
            if where not in word.where or not _is_for(word, path):
                continue
            for match in _matches(word, shown):
                at = line + shown.count("\n", 0, match.start())
                said = " ".join(match[0].split())
                hits.append(f"{path}:{at}: {said} -> {word.better}")
    return hits


def _is_for(word: Word, path: str) -> bool:
    """Whether the word is private in this file."""
    matches = (any(fnmatch.fnmatch(path, p) for p in ps) for ps in (word.only, word.allowed))
    return next(matches) and not next(matches)


@cache
def _regex(word: Word) -> re.Pattern[str]:
    pattern = word.pattern.replace(" ", r"\s+")
    return re.compile(rf"(?<![\w-])(?:{pattern})(?!\w)", re.IGNORECASE)


ANY = re.compile("|".join(_regex(word).pattern for word in WORDS), re.IGNORECASE)


def _matches(word: Word, text: str) -> Iterator[re.Match[str]]:
    kept = [m.span() for m in re.finditer(word.but, text, re.IGNORECASE)] if word.but else []
    for match in _regex(word).finditer(text):
        if not any(begin <= match.start() < end for begin, end in kept):
            yield match


def test_no_private_words():
    hits = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        is_page = path.suffix == ".md"
        is_code = path.suffix == ".py" and name.startswith(("mace_train/", "scripts/", "tests/"))
        if (is_page or is_code) and path != Path(__file__) and path.exists():
            hits += found_in(name, path.read_text())
    assert not hits, f"{len(hits)} private words\n" + "\n".join(hits)


@pytest.mark.parametrize(
    ("path", "text", "hit"),
    [
        ("mace_train/a.py", "def open_crew():\n    pass\n", "a.py:1: crew -> task pool"),
        ("mace_train/a.py", "x = 1  # made anew\n", "a.py:1: anew -> again"),
        (
            "mace_train/a.py",
            '"""First.\n\nRanks part\nways.\n"""\n',
            "a.py:3: part ways -> diverge",
        ),
        ("mace_train/a.py", "# what is\n# left\n# behind\n", "a.py:2: left behind -> left over"),
        ("mace_train/a.py", "class Slots:\n    pass\n", "class Slots -> SharedMemoryPool"),
        ("mace_train/a.py", "error = f'{n} in trouble'\n", "a.py:1: trouble -> failure"),
        ("mace_train/train/a.py", "archive = 1\n", "a.py:1: archive -> checkpoint"),
        ("README.md", "One.\nKeys in\nrising order.\n", "README.md:3: rising -> ascending"),
        ("CHANGELOG.md", "| was | is |\n|---|---|\n| `a` | `crew` |\n", "CHANGELOG.md:3: crew"),
        (
            "CHANGELOG.md",
            "| was | is |\n| `a` | `b` |\n\n| a |\n| crew |\n",
            "CHANGELOG.md:5: crew",
        ),
    ],
)
def test_a_planted_word_is_found(path, text, hit):
    assert any(hit in line for line in found_in(path, text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mace_train/data/read/a.py", "archive = 1  # a tar file\n"),
        ("mace_train/a.py", "'pip install mace-train[referee]'\n"),
        ("mace_train/model/a.py", "class A:\n    __slots__ = ()\n"),
        ("mace_train/a.py", "ideal, pieced, wholly = 1, 2, 3  # comprising\n"),
        ("README.md", "> quoted: anew\n"),
        ("CHANGELOG.md", "| was | is |\n|---|---|\n| `a.crew` | `a.task_pool` |\n"),
    ],
)
def test_words_of_the_field_stay(path, text):
    assert found_in(path, text) == []
