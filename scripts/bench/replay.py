"""Replay with and without the old labels: models of mixed sets learn another molecule.

A narrow model of each kind is trained on six sets at once: a molecule (3BPA), a liquid electrolyte,
zeolites, carbon, and two sets of alloys; the energies of each are taken relative to a least-squares
fit of one energy per element. Then 100 structures of acetylacetone, of another method, are learned

    naive          alone
    pseudolabels   beside old structures that `mace-train select` chose by the model's descriptors,
                   with the energies and forces that the model predicts for them
    true labels    beside the same structures, with the labels of their sets

and the force RMSE on acetylacetone at 300 K and 600 K and on structures of the six sets that no
training has seen is taken, and the CPU time. Passes when the model with pseudolabels is not worse
than 1.25 times the naive one on acetylacetone, and not worse than 1.5 times the first model on the
old sets.

    python scripts/bench/replay.py --data FOLDER --json FILE --plot FILE

FOLDER holds botnet_3BPA, botnet_acac (arXiv 2205.06643), ECEMC, zeo22_sample, pynep_C, mvl_MoNbTaW
and polymlp_AgAu as extended XYZ with REF_energy and REF_forces. What is finished in --work is used
again, so an interrupted run continues.
"""

import argparse
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import goals
import numpy as np
from ase import Atoms
from ase.io import read, write
from fine_tuning import command, isolated
from matplotlib.figure import Figure

R_MAX = "r_max=4.5"
EPOCHS, TUNING_EPOCHS = 15, 12
N_NEW, N_REPLAY = 100, 100
OLD = {  # name: file, structures to train on, to validate, to test
    "3BPA": ("botnet_3BPA/train_300K", 150, 10, 40),
    "electrolyte": ("ECEMC/ECEMC", 12, 2, 5),
    "zeolite": ("zeo22_sample/zeo22_sample", 40, 5, 12),
    "carbon": ("pynep_C/pynep_C_train", 40, 5, 25),
    "MoNbTaW": ("mvl_MoNbTaW/mvl_MoNbTaW", 120, 10, 40),
    "AgAu": ("polymlp_AgAu/polymlp_AgAu", 60, 6, 20),
}
MOLECULES = ("3BPA", "electrolyte")  # of H, C, N, O
NEW = ("acac 300 K", "acac 600 K")
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
MODELS = {
    "density": ["model=density", "model.num_channels=32"],
    "nonlinear": [
        "model.num_channels=32",
        f"model.interaction_first={NONLINEAR}",
        f"model.interaction={NONLINEAR}",
        "model.apply_cutoff=false",
        "model.use_agnostic_product=true",
        "model.edge_irreps=16x0e+16x1o",
    ],
}
WAYS = ("naive", "pseudolabels", "true labels")
Errors = dict[str, float]  # meV/Å, of each test set


def main() -> int:
    """Train, evaluate, print; 0 if replay learns and remembers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/replay"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the first training")
    parser.add_argument("--tuning-epochs", type=int, default=TUNING_EPOCHS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.data, work)
    found: dict[str, Any] = {}
    rows: list[goals.Row] = []
    for model in arguments.models:
        found[model] = study(model, work, arguments)
        rows += criteria(model, found[model]["errors"])
        print(table(model, found[model]), flush=True)
        complete = len(found) == len(arguments.models)
        goals.write(arguments.json, rows, complete=complete, models=found)
        if arguments.plot:
            draw(found, arguments.plot)
    for row in rows:
        print(goals.describe(row))
    return 0 if all(map(goals.reaches, rows)) else 1


def prepare(data: Path, work: Path) -> None:
    """Files to train on, to validate and to test; shards of the six sets and of acetylacetone."""
    if (work / "acac" / "statistics.json").exists():
        return
    random = np.random.default_rng(0)
    old: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    for name, (path, *sizes) in OLD.items():
        frames = relative(without_isolated(frames_of(data / f"{path}.extxyz.gz")), name)
        frames = [frames[i] for i in random.permutation(len(frames))[: sum(sizes)]]
        ends = np.cumsum(sizes)
        for part, first, last in zip(old, [0, *ends], ends, strict=False):
            old[part] += frames[first:last]
    elements = sorted({symbol for atoms in old["train"] for symbol in atoms.symbols})
    atoms_of_old = [labelled(Atoms(symbol), 0.0, "IsolatedAtom") for symbol in elements]
    new = [labelled_as(a, "acac") for a in frames_of(data / "botnet_acac/train_300K.extxyz.gz")]
    new = [new[i] for i in random.permutation(len(new))]
    tests = list(old["test"])
    for name, kelvin in zip(NEW, (300, 600), strict=True):
        frames = frames_of(data / f"botnet_acac/test_MD_{kelvin}K.extxyz.gz")[::6]
        tests += [labelled_as(atoms, name) for atoms in frames]
    files = {
        "old_train": atoms_of_old + old["train"],
        "old_valid": old["valid"],
        "new_train": isolated(data / "botnet_acac/isolated_atoms.extxyz.gz") + new[:N_NEW],
        "new_valid": new[N_NEW : N_NEW + 30],
        "tests": tests,
    }
    for name, frames in files.items():
        write(work / f"{name}.xyz", frames, format="extxyz")
    preprocess(work, "old", "old_train.xyz", "old_valid.xyz")
    preprocess(work, "acac", "new_train.xyz", "new_valid.xyz")


def frames_of(path: Path) -> list[Atoms]:
    """All structures; unpacked first, since ASE seeks in what it reads."""
    with gzip.open(path, "rt") as file:
        text = file.read()
    found: list[Atoms] = read(io.StringIO(text), ":", format="extxyz")
    return found


def without_isolated(frames: Sequence[Atoms]) -> list[Atoms]:
    """Structures of more than one atom with forces."""
    return [atoms for atoms in frames if len(atoms) > 1 and "REF_forces" in atoms.arrays]


def relative(frames: list[Atoms], name: str) -> list[Atoms]:
    """Energies relative to one energy per element, by least squares over the set."""
    symbols = sorted({symbol for atoms in frames for symbol in atoms.symbols})
    counts = np.array([[atoms.symbols.count(s) for s in symbols] for atoms in frames])
    energies = np.array([atoms.info["REF_energy"] for atoms in frames])
    fit = counts @ np.linalg.lstsq(counts, energies, rcond=None)[0]
    return [labelled(a, float(e), name) for a, e in zip(frames, energies - fit, strict=True)]


def labelled(atoms: Atoms, energy: float, name: str) -> Atoms:
    """The structure with this energy, eV, named, and with forces alone beside."""
    forces = atoms.arrays.get("REF_forces", np.zeros((len(atoms), 3)))
    new = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    new.info.update(REF_energy=energy, config_type=name)
    new.arrays["REF_forces"] = forces
    return new


def labelled_as(atoms: Atoms, name: str) -> Atoms:
    """The structure with its own energy."""
    return labelled(atoms, atoms.info["REF_energy"], name)


def preprocess(work: Path, name: str, train_file: str, valid_file: str) -> None:
    """Shards of a file, or of '{head: file, ...}'."""
    given = [f"data.train_file={train_file}", f"data.valid_file={valid_file}"]
    command("preprocess", *given, R_MAX, f"output={work / name}", at=work)


def study(model: str, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Errors and CPU seconds of the first model and of those made from it."""
    first = work / f"{model}-first"
    epochs = f"max_num_epochs={arguments.epochs}"
    train(first, work / "old", [*MODELS[model], "optimizer.lr=0.01", epochs])
    errors = {"first": evaluate(first, work, [""])}
    seconds = {"first": spent(first)}
    selection = {way: select(way, model, work) for way in WAYS if way != "naive"}
    for way in WAYS:
        output = work / f"{model}-{way.replace(' ', '_')}"
        start = [f"foundation.checkpoint={first}", "foundation.E0s=estimated"]
        start += ["foundation.elements=all", "optimizer.lr=0.002"]
        start += [f"max_num_epochs={arguments.tuning_epochs}"]
        heads = [""]
        data = work / "acac"
        if way != "naive":
            heads, data = ["acac", "old"], work / f"{output.name}-data"
            start.append("checkpoints.head=acac")
        train(output, data, start)
        errors[way] = evaluate(output, work, heads)
        seconds[way] = spent(output)
    return {"errors": errors, "seconds": seconds, "seconds of select": selection}


def select(way: str, model: str, work: Path) -> float:
    """Choose old structures, and make shards of them and of acetylacetone; its CPU seconds."""
    name = f"{model}-{way.replace(' ', '_')}"
    chosen = work / f"{name}-old.xyz"
    if not (work / f"{name}-data" / "statistics.json").exists():
        chosen.unlink(missing_ok=True)
        words = [f"checkpoint={work / f'{model}-first'}", f"structures={work / 'old_train.xyz'}"]
        words += [f"n={N_REPLAY}", f"pseudolabels={str(way == 'pseudolabels').lower()}"]
        seconds = command("select", *words, f"output={chosen}", "cluster=cpu", at=work)
        both = f"{{acac: new_train.xyz, old: {chosen.name}}}"
        preprocess(work, f"{name}-data", both, "{acac: new_valid.xyz, old: old_valid.xyz}")
        (work / f"{name}-data" / "seconds").write_text(str(seconds))
    return float((work / f"{name}-data" / "seconds").read_text())


def train(output: Path, data: Path, settings: Sequence[str]) -> None:
    """A training, unless it is done."""
    if not (output / "seconds").exists():
        common = ["seed=1", "batching.batch_size=5", "restart_latest=true", "cluster=cpu"]
        words = [f"data_dir={data}", f"output={output}", *settings, *common]
        seconds = command("train", *words, at=output.parent)
        (output / "seconds").write_text(str(seconds))


def spent(output: Path) -> float:
    """CPU seconds of a training."""
    return float((output / "seconds").read_text())


def evaluate(run: Path, work: Path, heads: Sequence[str]) -> Errors:
    """RMSE of forces on every test set: the new ones by the first head, the old ones by the last.

    Those of old sets together have names of their own.
    """
    tables = []
    for head in heads:
        output = run / f"tests{head}"
        if not (output / "errors.json").exists():
            words = [f"checkpoint={run}", f"test_file={work / 'tests.xyz'}", f"output={output}"]
            words += [f"head={head}"] if head else []
            command("evaluate", *words, "plots=false", "predictions=false", "cluster=cpu", at=work)
        table = json.loads((output / "errors.json").read_text())["errors"]
        tables.append({row["name"].removeprefix("config_type "): row for row in table})
    found = {name: _rmse([tables[0][name]]) for name in NEW}
    old = {name: tables[-1][name] for name in OLD}
    found |= {name: _rmse([row]) for name, row in old.items()}
    found["old molecules"] = _rmse([old[name] for name in MOLECULES])
    found["old solids"] = _rmse([old[name] for name in old if name not in MOLECULES])
    found["all old"] = _rmse(list(old.values()))
    return found


def _rmse(rows: Sequence[dict[str, Any]]) -> float:
    """Of the forces of several sets together, meV/Å."""
    counts = np.array([row["forces_count"] for row in rows])
    errors = np.array([row["forces_rmse_eV_per_A"] for row in rows])
    return float(1000 * np.sqrt((counts * errors**2).sum() / counts.sum()))


def criteria(model: str, errors: dict[str, Errors]) -> list[goals.Row]:
    """What must hold: errors, so less is better."""
    replayed, rows = errors["pseudolabels"], []
    for name in NEW:
        peers = {"naive": errors["naive"][name]}
        rows.append(goals.row(f"{model}, pseudolabels, {name}", replayed[name], peers, 0.8))
    peers = {"the first model": errors["first"]["all old"]}
    rows.append(goals.row(f"{model}, pseudolabels, old sets", replayed["all old"], peers, 1 / 1.5))
    return rows


SHOWN = (*NEW, "old molecules", "old solids")
TICKS = (100, 200, 500, 1000)  # meV/Å


def table(model: str, found: dict[str, Any]) -> str:
    """Force RMSE, meV/Å, and CPU seconds."""
    lines = [f"| {model} | {' | '.join(SHOWN)} | CPU, s |", "|---|" + "---|" * (len(SHOWN) + 1)]
    for way, errors in found["errors"].items():
        seconds = f"{found['seconds'][way]:.0f}"
        if way in found["seconds of select"]:
            seconds += f" + {found['seconds of select'][way]:.0f} to select"
        cells = [f"{errors[name]:.0f}" for name in SHOWN]
        lines.append(f"| {way} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Errors of every model and way, on new and old sets."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (model, of_model) in zip(panels, found.items(), strict=True):
        ways = of_model["errors"]
        width = 0.8 / len(ways)
        for i, (way, errors) in enumerate(ways.items()):
            label = {"first": "before", "naive": "naive"}.get(way, f"replay, {way}")
            values = [errors[name] for name in SHOWN]
            panel.bar(np.arange(len(SHOWN)) + i * width, values, width, label=label)
        names = [name.replace(" ", "\n", 1) for name in SHOWN]
        panel.set_xticks(np.arange(len(SHOWN)) + 0.4 - width / 2, names)
        panel.set(title=model, yscale="log", ylim=(min(TICKS), None))
        panel.set_yticks(TICKS, list(map(str, TICKS)))
        panel.minorticks_off()
    panels[0].set_ylabel("RMSE of forces, meV/Å")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
