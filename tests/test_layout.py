"""The rules of the code base that tools do not check: file lengths, links, names, the top level."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.tree import ROOT, tracked

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

# file name -> why two folders of mace_train/ have one
SAME_FILE_NAME = {
    "__init__.py": "every package has one",
    "compiler.py": "C++ and CUDA: the same part of two backends",
    "emit.py": "C++ and CUDA: the same part of two backends",
    "kernel.py": "C++ and CUDA: the same part of two backends",
    "convolution.py": "the layer of the model, and the operator it calls",
    "mace_torch.py": "data sets for mace-torch, and models of mace-torch",
    "plots.py": "of the balance report, and of the report on a training",
    "simulation.py": "dynamics and relaxation, and their settings",
}
# class name -> why two modules of mace_train/ have one
SAME_CLASS_NAME = {
    "Level": "a level of products in the model's basis, and in the program made from it",
    "Output": "an output of the model's basis, and of the program made from it",
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


def duplicates(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that occur in several places, with the places."""
    found = defaultdict(list)
    for name, where in pairs:
        found[name].append(where)
    return {name: places for name, places in found.items() if len(places) > 1}


def package_files() -> list[Path]:
    return [p for p in tracked() if p.suffix == ".py" and p.is_relative_to(ROOT / "mace_train")]


def classes_of(path: Path) -> list[tuple[str, str]]:
    nodes = ast.parse(path.read_text()).body
    return [(node.name, path.name) for node in nodes if isinstance(node, ast.ClassDef)]


def test_one_file_name_has_one_meaning():
    same = duplicates([(p.name, p.parent.name) for p in package_files() if p.exists()])
    assert {name: where for name, where in same.items() if name not in SAME_FILE_NAME} == {}


def test_one_class_name_has_one_meaning():
    same = duplicates([pair for p in package_files() if p.exists() for pair in classes_of(p)])
    assert {name: where for name, where in same.items() if name not in SAME_CLASS_NAME} == {}


def test_a_planted_duplicate_is_found(tmp_path):
    (tmp_path / "a.py").write_text("class Same:\n    pass\n")
    (tmp_path / "b.py").write_text("class Same:\n    pass\n\n\nclass Other:\n    pass\n")
    pairs = [pair for name in ("a.py", "b.py") for pair in classes_of(tmp_path / name)]
    assert duplicates(pairs) == {"Same": ["a.py", "b.py"]}
