"""What pages quote: files of the project exist, and names of mace_train import."""

import importlib
import re
from collections.abc import Iterator

import pytest

from tests.tree import ROOT, tracked

TOP_FOLDERS = ("mace_train/", "scripts/", "tests/", "configs/", "kernels/", "slurm/")
SUFFIXES = ("cpp", "cu", "cuh", "h", "json", "md", "png", "py", "sbatch", "sh", "toml", "yaml")
OF_A_RUN = ("runs/", "prepared/", "checkpoints/")  # made by commands, in examples
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def spans(text: str) -> list[tuple[int, str]]:
    """(line, content) of the code spans of a page, without code blocks and old names."""
    text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    start, end = old_names(text)
    text = text[:start] + "\n" * text.count("\n", start, end) + text[end:]
    return [
        (number, content)
        for number, line in enumerate(text.splitlines(), 1)
        for content in SPAN.findall(line)
    ]


def old_names(text: str) -> tuple[int, int]:
    """Where the table with the columns "was" and "is" is in a text."""
    table = re.search(r"^ *\| was \| is \|\n(?: *\|.*\n)*", text, re.M)
    return table.span() if table else (0, 0)


def is_path(word: str) -> bool:
    """Whether a word of a code span names a file or folder of the project."""
    parts = word.split("/")
    if not re.fullmatch(r"\w[\w./-]*", word) or word.startswith(OF_A_RUN) or len(parts) == 1:
        return False
    if any(part.split(".")[0].isupper() for part in parts[:-1]):  # OUTPUT/settings.json
        return False
    return word.startswith(TOP_FOLDERS) or word.endswith(tuple(f".{s}" for s in SUFFIXES))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute or field of what a module has."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):  # an extra that is not installed
                raise
            continue
        for part in parts[n:]:
            if part in getattr(found, "__annotations__", {}) and not hasattr(found, part):
                return part == parts[-1]
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def wrong_in(page: str, text: str) -> Iterator[str]:
    """ "page:line: name" for every path that does not exist and name that does not import."""
    bases = (ROOT, ROOT / "mace_train", (ROOT / page).parent)
    for line, content in spans(text):
        for word in re.split(r"[\s=]+", content):
            path = word.rstrip(".,;:").split("::")[0]
            if is_path(path) and not any((base / path).exists() for base in bases):
                yield f"{page}:{line}: {path}"
        for name in re.findall(r"(?<![\w./])mace_train(?:\.\w+)+(?!/)", content):
            if not resolves(name):
                yield f"{page}:{line}: {name}"


def new_names(text: str) -> Iterator[str]:
    """The full names in the second column of a table of old names.

    >>> list(new_names("| was | is |\\n|-|-|\\n| `p`, `q` (`A`) | `a.b`, `.c` (`D`) |\\n"))
    ['mace_train.a.b', 'mace_train.a.c', 'mace_train.a.c.D']
    """
    start, end = old_names(text)
    for row in text[start:end].splitlines()[2:]:
        module = "mace_train"
        for part in re.findall(r"\([^)]*\)|`[^`]+`", row.split("|")[2]):
            if part.startswith("("):
                yield from (f"{module}.{name}" for name in SPAN.findall(part))
                continue
            name = part.strip("`")
            package = module.rpartition(".")[0] if name.startswith(".") else "mace_train"
            module = f"{package}.{name.lstrip('.')}"
            yield module


def test_what_pages_quote_is_there():
    pages = [path for path in tracked() if path.suffix == ".md"]
    assert len(pages) > 10
    names = [path.relative_to(ROOT).as_posix() for path in pages]
    wrong = [w for name in names for w in wrong_in(name, (ROOT / name).read_text())]
    assert not wrong, "\n".join(wrong)


def test_new_names_of_the_changelog_are_there():
    names = list(new_names((ROOT / "CHANGELOG.md").read_text()))
    assert len(names) > 100
    assert not [name for name in names if not resolves(name)]


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("One.\n`train/no_such.py`\n", "p.md:2: train/no_such.py"),
        ("`scripts/none/`", "p.md:1: scripts/none/"),
        ("`python scripts/none.py --data F`", "p.md:1: scripts/none.py"),
        ("```bash\nx\n```\n`mace_train.world`", "p.md:4: mace_train.world"),
        ("`mace_train.model.mace.MACE.places`", "p.md:1: mace_train.model.mace.MACE.places"),
        ("| was | is |\n| `a` | `b` |\n\n`mace_train.world`", "p.md:4: mace_train.world"),
    ],
)
def test_a_planted_name_is_found(text, hit):
    assert list(wrong_in("p.md", text)) == [hit]


@pytest.mark.parametrize(
    "text",
    [
        "`train/train.py`, `tests/tree.py`, `scripts/bench/`, `python scripts/bench/step.py --x`",
        "`OUTPUT/settings.json` `runs/first/a.json` `/dev/shm` `~/x/a.py` `train/` `a.py`",
        "`mace_train.model.mace.MACE.energies` `mace_train.data.graph.Graph.positions`",
        "| was | is |\n|---|---|\n| `mace_train.world` | `x/y.py` |\n",
    ],
)
def test_what_is_there_is_no_hit(text):
    assert list(wrong_in("p.md", text)) == []


def test_a_planted_new_name_is_found():
    table = "| was | is |\n|---|---|\n| `a` | `train.ema` (`Average`), `.average` |\n"
    wrong = [name for name in new_names(table) if not resolves(name)]
    assert wrong == ["mace_train.train.ema.Average", "mace_train.train.average"]
