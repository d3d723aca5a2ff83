"""Kinds of models: is each one mace-torch's to the last digits, and how much cheaper is a step.

For every file of configs/model and some more kinds, at full width: mace-torch's model with random
weights is built and imported. Then, in float64, energies, energies of atoms, forces and stress of
both on structures of the embedded example data (molecules and crystals): the largest difference,
relative to the largest value. And, in float32, a whole training step of both in turns, the least
CPU time of each (the step of step.py). Passes when differences are at most 1e-10 and each step is
as many times cheaper as its goal says.

    python scripts/bench/kinds.py --allocator keep --markdown
                                  [--kinds medium omat_0] [--repeats 3] [--json FILE] [--no-steps]

Needs the extra "interop". One thread, unless --threads says otherwise.
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import goals  # noqa: E402
import torch  # noqa: E402
from machine import add_allocator, use_allocator  # noqa: E402
from step_batches import KEYS, batch_of, ten_structures  # noqa: E402
from step_programs import our_step, peer_step, seconds_of  # noqa: E402
from torch import nn  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402
from mace_train.data.read import read_structures  # noqa: E402
from mace_train.data.structure import Structure  # noqa: E402
from mace_train.interop.header import header_of  # noqa: E402
from mace_train.interop.probe_structures import with_probe_inputs  # noqa: E402
from mace_train.interop.state_dict import from_mace_torch  # noqa: E402
from mace_train.settings.model import AGNOSTIC, ATTENTION, NONLINEAR  # noqa: E402
from tests.model.mace_torch import arguments_of, mace_torch_model  # noqa: E402
from tests.model.parity import LARGEST_DIFFERENCE, differences  # noqa: E402
from tests.model.recipes import RECIPES, model_settings  # noqa: E402

TRAIN = EXAMPLE_DATA / "train.extxyz.gz"


@dataclass(frozen=True)
class Kind:
    """A kind of model, on words of ``mace-train train``, and how much cheaper a step should be."""

    what: str
    words: list[str]
    ratio_at_least: float
    n_structures: int = 10  # of the step; fewer for wide models
    more: dict[str, Any] = field(default_factory=dict)  # of mace-torch's model


def _blocks(first: str, others: str, *words: str) -> list[str]:
    given = [f"model.interaction_first={first}", f"model.interaction={others}"]
    return ["model=medium", *given, *(f"model.{word}" for word in words)]


MH_1 = ("apply_cutoff=false", "use_agnostic_product=true", "edge_irreps=128x0e+128x1o")
HEADS = {
    "heads": ["pbe", "scan"],
    "atomic_inter_scale": [0.8, 1.3],
    "atomic_inter_shift": [0.1, -0.2],
}
KINDS = {
    "tiny": Kind("for tests: 32x0e", ["model=tiny"], 2.0),
    "small": Kind("128x0e", ["model=small"], 6.0),
    "medium": Kind("128x0e+128x1o", ["model=medium"], 8.0),
    "large": Kind("128x0e+128x1o+128x2e", ["model=large"], 8.0),
    "off_medium": Kind("MACE-OFF23 medium", ["model=off_medium"], 8.0),
    "density": Kind("density, ZBL, Agnesi", ["model=density"], 15.0),
    "mp_0b2_large": Kind("MACE-MP-0b2 large", ["model=mp_0b2_large"], 15.0, 5),
    "mp_0b3": Kind("MACE-MP-0b3", ["model=mp_0b3"], 15.0, 5),
    "omat_0": Kind("MACE-OMAT-0", ["model=omat_0"], 15.0, 5),
    "omol": Kind("MACE-OMOL: 1024 over 128, charge, spin", ["model=omol"], 12.0, 1),
    "nonlinear": Kind("MACE-MH-1's blocks, 128", _blocks(NONLINEAR, NONLINEAR, *MH_1), 12.0),
    "nonlinear_512": Kind(
        "the same, 512 over 128",
        _blocks(NONLINEAR, NONLINEAR, *MH_1, "num_channels=512"),
        12.0,
        2,
    ),
    "attention": Kind("attention", _blocks(ATTENTION, ATTENTION, "apply_cutoff=false"), 6.0),
    "agnostic": Kind("no residual in any layer", _blocks(AGNOSTIC, AGNOSTIC, "model=MACE"), 8.0),
    "agnostic_product": Kind(
        "contraction without elements", ["model=medium", "model.use_agnostic_product=true"], 8.0
    ),
    "narrow_edges": Kind(
        "edges of 32x0e+32x1o", ["model=medium", "model.edge_irreps=32x0e+32x1o"], 6.0
    ),
    "gaussian": Kind("Gaussian basis", ["model=medium", "model.radial_type=gaussian"], 8.0),
    "readouts": Kind(
        "biased last readout alone, all degrees kept",
        [
            "model=medium",
            "model.readout_cls=NonLinearBiasReadoutBlock",
            "model.use_last_readout_only=true",
            "model.keep_last_layer_irreps=true",
        ],
        8.0,
    ),
    "heads": Kind("two heads", ["model=medium"], 8.0, more=HEADS),
}
"""By name; goals of plain, density and nonlinear models are those that the project set itself."""


def main() -> int:
    """Compare, print; 0 if every kind reaches its goals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = [*KINDS, *(name for name in RECIPES if name not in KINDS)]
    parser.add_argument("--kinds", nargs="+", choices=every, default=every)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-steps", action="store_true", help="compare numbers alone")
    parser.add_argument("--markdown", action="store_true", help="print the tables at the end")
    parser.add_argument("--json", type=Path, help="write the rows here")
    add_allocator(parser)
    arguments = parser.parse_args()
    use_allocator(arguments.allocator)
    torch.set_num_threads(arguments.threads)
    rows: list[goals.Row] = []
    table = []
    for name in arguments.kinds:
        kind = KINDS.get(name) or Kind(name, [f"model={name}"], 8.0)
        found = _parity(name, kind) + ([] if arguments.no_steps else [_step(name, kind, arguments)])
        for row in found:
            print(_text(row), flush=True)
        rows += found
        table.append(_cells(name, kind, found))
        goals.write(arguments.json, rows, complete=len(table) == len(arguments.kinds))
        gc.collect()  # models hold themselves, and wide ones are large
    if arguments.markdown:
        print(_markdown(HEADER, table), _markdown(SHORT_HEADER, _short(rows)), sep="\n\n")
    return 0 if all(map(goals.reaches, rows)) else 1


def _models(kind: Kind, graph: Graph, numbers: Sequence[int]) -> tuple[nn.Module, Graph]:
    """mace-torch's model with random weights, and the batch with inputs if it has any."""
    settings = model_settings(kind.words)
    arguments = {**arguments_of(settings), **kind.more}
    n_heads = len(arguments.get("heads", [""]))
    E0s = [[-0.01 * z - i for z in numbers] for i in range(n_heads)]  # small: they hide nothing
    arguments["atomic_energies"] = E0s
    peer = mace_torch_model(tuple(numbers), scripted=True, **arguments)
    return peer, with_probe_inputs(graph, settings.inputs())


def _parity(name: str, kind: Kind) -> list[goals.Row]:
    """The largest differences in float64."""
    graph, numbers = batch_of(_few_structures(), torch.float64, _r_max(kind))
    peer, graph = _models(kind, graph, numbers)
    ours = from_mace_torch(peer.state_dict(), header_of(peer))
    found = differences(ours, peer, graph)
    return [
        {
            "name": f"{name}: {quantity}",
            "ours": value,
            "at_most": LARGEST_DIFFERENCE,
        }
        for quantity, value in found.items()
    ]


def _step(name: str, kind: Kind, arguments: argparse.Namespace) -> goals.Row:
    """The training step of both in float32."""
    structures = ten_structures(TRAIN)[: kind.n_structures]
    graph, numbers = batch_of(structures, torch.float32, _r_max(kind))
    peer, graph = _models(kind, graph, numbers)
    peer = peer.to(graph.positions)
    steps = {"ours": our_step(graph, peer), "mace-torch": peer_step(graph, peer)}
    seconds = seconds_of(name, steps, arguments.repeats)
    times = {program: min(values) for program, values in seconds.items()}
    ours = times.pop("ours")
    size = {"atoms": graph.n_atoms, "edges": graph.n_edges}
    return goals.row(f"{name}: step, s", ours, times, kind.ratio_at_least, **size)


def _r_max(kind: Kind) -> float:
    return model_settings(kind.words).r_max or 5.0


def _few_structures() -> list[Structure]:
    """The first two molecules of 8 to 20 atoms of the example data, and two crystals of up to 8."""
    structures = list(read_structures([str(TRAIN)], KEYS))
    molecules = [s for s in structures if 8 <= s.n_atoms <= 20 and not s.pbc.any()]
    crystals = [s for s in structures if 2 <= s.n_atoms <= 8 and s.pbc.all()]
    return molecules[:2] + crystals[:2]


def _text(row: goals.Row) -> str:
    if "at_most" in row:
        return f"{row['name']} differs by {row['ours']:.1e} of the largest value"
    return f"{goals.describe(row)}; {row['atoms']} atoms, {row['edges']} edges"


HEADER = (
    "| model | what | energy | of atoms | forces | stress | atoms, edges | ours, s | mace-torch, s "
    "| ratio |\n|---|---|---|---|---|---|---|---|---|---|"
)

SHORT_HEADER = "| kind | difference | CPU time of a step |\n|---|---|---|"
SHORT = {  # kinds in README, and what they are called there
    "medium": "128x0e+128x1o (MACE-MP-0 medium)",
    "large": "128x0e+128x1o+128x2e (MACE-MP-0 large)",
    "density": "density (MACE-MP-0b3, MPA-0, OMAT-0)",
    "nonlinear": "nonlinear (blocks of MACE-MH-1), 128 channels",
    "omol": "nonlinear, 1024 channels over edges of 128, charge and spin (MACE-OMOL)",
    "attention": "attention",
}


def _cells(name: str, kind: Kind, rows: Sequence[goals.Row]) -> list[str]:
    """A line of the table."""
    cells = [name, kind.what, *(f"{row['ours']:.0e}" for row in rows if "at_most" in row)]
    for row in rows:
        if "at_most" not in row:
            cells += [f"{row['atoms']}, {row['edges']}", f"{row['ours']:.3g}", f"{row['peer']:.3g}"]
            cells.append(f"{row['ratio']:.1f}")
    return cells


def _short(rows: Sequence[goals.Row]) -> list[list[str]]:
    """README's lines: of each kind there the largest of the differences, and the ratio."""
    lines = []
    for name, what in SHORT.items():
        of_kind = [row for row in rows if row["name"].startswith(f"{name}: ")]
        ratios = [f"{row['ratio']:.0f}" for row in of_kind if "at_most" not in row]
        if of_kind:
            largest = max(row["ours"] for row in of_kind if "at_most" in row)
            lines.append([what, f"{largest:.0e}", *ratios])
    return lines


def _markdown(header: str, lines: Sequence[Sequence[str]]) -> str:
    return "\n".join([header, *(f"| {' | '.join(cells)} |" for cells in lines)])


if __name__ == "__main__":
    sys.exit(main())
