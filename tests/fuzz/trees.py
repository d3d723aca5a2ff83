"""Changes of JSON-like values and of text: one node, a few bytes, or the form of the whole."""

import copy
import json
import random
from pathlib import Path
from typing import Any

from tests.data.fuzzing import cut, double, exchange_lines, flip, scribble, zero

NODES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 1e30, -1e300, 10**40),
    *(float("nan"), float("inf"), "", "x"),
    *(
        "nan",
        "0",
        "日本",
        "a" * 3000,
        [],
        {},
        [None],
        [[1, 2], [3]],
        {"a": None},
        {"1": "x"},
        {"": 0},
    ),
)
YAML_JUNK = (
    *("a: [1, 2", "a: {b: 1", "\ta: 1", "a: b: c", "- 1"),
    *("a: &x 1\nb: *x", "b: *nope", "? x", "'a", "%"),
    *("a: !!python/object/apply:os.system [id]", "a: !!binary x"),
    *("a: !!set {1}", "a: 2024-01-01", "---"),
    *("a: 1\na: 2", "[1]: 2", "{a: 1}: 2", "~: 1", "1: 2"),
    *("null: 3", "true: 1", "<<: 1", "<<: {a: 1}"),
    *("a: .nan", "a: .inf", "a: 1e5", "a: 0o7", "a: 1_000"),
    *("a: 12:30", "a: |\n  x", "a: >", "a: @x"),
    *("a: ${nope}", "a: ${", "a: ${oc.env:NOT_SET}", "a: ???"),
    *("defaults: 1", "defaults: [nope]", "..."),
    *("defaults: [{a: b}]", "defaults:\n  - _self_\n  - _self_"),
    *("# @package x", "a:\n - b\n  - c", "`"),
    *("seed: x", "model: 1", "model: [1]", "model: null"),
    *("model:\n  num_channels: x", "optimizer: adam"),
)  # fmt: skip
BYTES = (flip, cut, zero, double, exchange_lines, scribble)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every node below the root."""
    pairs: Any = ()
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list):
        pairs = enumerate(tree[:4])
    found = []
    for key, item in pairs:
        found += [(*at, key), *places(item, (*at, key))]
    return found


def change_node(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy in which one node is lost, replaced or added; what was done."""
    tree = copy.deepcopy(tree)
    found = places(tree)
    if not found or rng.random() < 0.03:
        value = rng.choice(NODES)
        return value, f"all={str(value)[:20]}"
    *path, key = rng.choice(found)
    parent = tree
    for step in path:
        parent = parent[step]
    name = ".".join(map(str, (*path, key)))
    kind = rng.random()
    if kind < 0.2:
        del parent[key]
        return tree, f"without {name}"
    if kind < 0.3 and isinstance(parent, dict):
        parent[rng.choice(("x", "", key + "_", "1"))] = rng.choice(NODES)
        return tree, f"one more beside {name}"
    old = parent[key]
    if kind < 0.5 and isinstance(old, (int, float)) and not isinstance(old, bool):
        parent[key] = rng.choice((-old, old * 10**6, old + 1, float(old) + 0.5, str(old), [old]))
    else:
        parent[key] = rng.choice(NODES)
    return tree, f"{name}={str(parent[key])[:20]}"


def damage_text(path: Path, rng: random.Random) -> str:
    """Change bytes of a file; what was done."""
    content = bytearray(path.read_bytes())
    if not content:
        return "empty"
    how = rng.choice((*BYTES, _encode))
    how(content, rng)
    path.write_bytes(content)
    return how.__name__.strip("_")


def _encode(content: bytearray, rng: random.Random) -> None:
    text = bytes(content).decode(errors="replace")
    encoding = rng.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1"))
    content[:] = (text + "# é\n").encode(encoding, errors="replace")


def damage_json(path: Path, rng: random.Random) -> str:
    """Change a JSON file, by its nodes or its bytes."""
    if rng.random() < 0.25:
        return damage_text(path, rng)
    tree, what = change_node(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(tree, indent=1))
    return what


def add_yaml(path: Path, rng: random.Random) -> str:
    """Write a strange line into a YAML file."""
    lines = path.read_text().splitlines()
    junk = rng.choice(YAML_JUNK)
    lines.insert(rng.randrange(len(lines) + 1), junk)
    path.write_text("\n".join(lines) + "\n")
    return f"line {junk[:40]!r}"
