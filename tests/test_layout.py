"""The rules of the code base that tools do not check: file lengths, links, the top level."""

import re

from tests.repository import ROOT, tracked

LONGEST = 400
TOP_LEVEL = {
    "pyproject.toml",
    "mace_train",
    "configs",
    "kernels",
    "slurm",
    "scripts",
    "tests",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
}


def test_no_python_file_is_long():
    lengths = {p: len(p.read_text().splitlines()) for p in tracked() if p.suffix == ".py"}
    assert not {str(path): n for path, n in lengths.items() if n > LONGEST}


def test_top_level_is_the_agreed_one():
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_no_module_imports_from_a_test_module():
    """What two files need is in a module of helpers, so that a test module may be renamed."""
    pattern = re.compile(r"^\s*(?:from|import)\s+tests(?:\.\w+)*\.test_\w+.*"
                         r"|^\s*from\s+tests[\w.]*\s+import\s.*\btest_\w+.*", re.M)  # fmt: skip
    found = {
        str(path.relative_to(ROOT)): lines
        for path in tracked()
        if path.suffix == ".py" and (lines := pattern.findall(path.read_text()))
    }
    assert not found


def test_markdown_links_lead_somewhere():
    broken = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken
