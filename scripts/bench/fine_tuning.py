"""Fine-tuning: what a model of one molecule is worth for another, and what it forgets.

A model is trained on 3BPA (H, C, N, O; 300 K). Then 100 structures of acetylacetone, another
molecule with other energies of isolated atoms, are learned in the same number of epochs

    scratch   from random weights
    naive     from that model, all weights
    lora      from that model, low-rank changes alone
    replay    from that model, with a head for each molecule and 200 structures of 3BPA as replay

and the force RMSE on acetylacetone at 300 K and 600 K and on 3BPA is taken. Passes when naive and
replay are better than scratch on acetylacetone, and replay is within 20 % of the first model on
3BPA. Means over seeds.

    python scripts/bench/fine_tuning.py --data FOLDER --json FILE --plot FILE

FOLDER holds botnet_3BPA and botnet_acac (arXiv 2205.06643) as extended XYZ. Finished trainings in
--work are used again, so an interrupted run continues.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["model.num_channels=32", "model.max_L=1", "r_max=5.0"]
BPA_EPOCHS, EPOCHS = 25, 20
N_SMALL, N_REPLAY = 100, 200  # structures of acetylacetone, and of 3BPA in the replay
TESTS = {"acac 300 K": "acac", "acac 600 K": "acac", "3BPA 300 K": "bpa"}
KINDS = {
    "scratch": ["optimizer.lr=0.01"],
    "naive": ["optimizer.lr=0.002", "foundation.elements=all"],
    "lora": ["optimizer.lr=0.01", "foundation=lora", "foundation.elements=all"],
    "replay": ["optimizer.lr=0.002", "checkpoints.head=acac"],
}


def main() -> int:
    """Train, evaluate, print; 0 if fine-tuning pays and replay remembers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    files = prepare(arguments.data, work)
    errors: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, arguments.seeds + 1):
        first = work / f"3BPA-{seed}"
        train(first, work / "bpa", [*MODEL[:2], f"seed={seed}", f"max_num_epochs={BPA_EPOCHS}"])
        errors.setdefault("3BPA model", []).append(evaluate(first, "bpa", files))
        for kind, settings in KINDS.items():
            output = work / f"{kind}-{seed}"
            start = MODEL[:2] if kind == "scratch" else [f"foundation.checkpoint={first}"]
            data = work / ("both" if kind == "replay" else "acac")
            epochs = f"max_num_epochs={EPOCHS}"
            train(output, data, [*start, *settings, f"seed={seed}", epochs])
            errors.setdefault(kind, []).append(evaluate(output, kind, files))
    rows = compare(errors)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        draw(errors, work, arguments.plot)
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def prepare(data: Path, work: Path) -> dict[str, Path]:
    """Files of test structures; shards of 3BPA, of acetylacetone, and of both."""
    bpa, acac = (read(data / f"botnet_{n}/train_300K.extxyz.gz", ":") for n in ("3BPA", "acac"))
    bpa_atoms = isolated(data / "botnet_3BPA/iso_atoms.extxyz.gz")
    acac_atoms = isolated(data / "botnet_acac/isolated_atoms.extxyz.gz")
    order = np.random.default_rng(0)
    bpa = [bpa[i] for i in order.permutation(len(bpa))]
    acac = [acac[i] for i in order.permutation(len(acac))]
    sets = {
        "bpa-train": bpa_atoms + bpa[:400],
        "bpa-valid": bpa[400:450],
        "bpa-replay": bpa_atoms + bpa[:N_REPLAY],
        "acac-train": acac_atoms + acac[:N_SMALL],
        "acac-valid": acac[-50:],
        "3BPA 300 K": bpa[450:],
        "acac 300 K": read(data / "botnet_acac/test_MD_300K.extxyz.gz", ":")[::3],
        "acac 600 K": read(data / "botnet_acac/test_MD_600K.extxyz.gz", ":")[::3],
    }
    files = {name: work / f"{name.replace(' ', '_')}.xyz" for name in sets}
    for name, path in files.items():
        write(path, sets[name], format="extxyz")
    shards = {
        "bpa": (f"{files['bpa-train']}", f"{files['bpa-valid']}"),
        "acac": (f"{files['acac-train']}", f"{files['acac-valid']}"),
        "both": (
            f"{{acac: {files['acac-train']}, bpa: {files['bpa-replay']}}}",
            f"{{acac: {files['acac-valid']}, bpa: {files['bpa-valid']}}}",
        ),
    }
    for name, (train_file, valid_file) in shards.items():
        if not (work / name / "statistics.json").exists():
            given = [f"data.train_file={train_file}", f"data.valid_file={valid_file}", MODEL[2]]
            command("preprocess", *given, f"output={work / name}")
    return files


def isolated(path: Path) -> list[Atoms]:
    """The isolated atoms, named as such."""
    frames = read(path, ":")
    for atoms in frames:
        atoms.info["config_type"] = "IsolatedAtom"
    return frames


def train(output: Path, data: Path, settings: list[str]) -> None:
    """A training, unless it is done."""
    if not (output / "finished").exists():
        common = ["batching.batch_size=5", "restart_latest=true", "cluster=cpu"]
        command("train", f"data_dir={data}", f"output={output}", *settings, *common)
        (output / "finished").touch()


def evaluate(run: Path, kind: str, files: dict[str, Path]) -> dict[str, float]:
    """RMSE of the forces, meV/Å, on every test set that the model can predict."""
    errors = {}
    for name, head in TESTS.items():
        if kind == "scratch" and head == "bpa":
            continue  # knows no nitrogen
        output = run / name.replace(" ", "_")
        if not (output / "errors.json").exists():
            given = [f"checkpoint={run}", f"test_file={files[name]}", f"output={output}"]
            heads = [f"head={head}"] if kind == "replay" else []
            command("evaluate", *given, *heads, "plots=false", "cluster=cpu")
        table = json.loads((output / "errors.json").read_text())["errors"]
        errors[name] = 1000 * table[0]["forces_rmse_eV_per_A"]
    return errors


def command(*words: str, at: Path | None = None) -> float:
    """``mace-train`` in a process of its own, in a folder; output only if it fails. CPU seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    print("mace-train", words[0], words[2 if words[0] == "train" else 1], flush=True)
    before = _cpu_seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=at,
    )
    if done.returncode:
        sys.exit(f"mace-train {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return _cpu_seconds_of_children() - before


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(errors: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Print the table of means (ranges) and give the rows that must hold."""
    print(f"| force RMSE, meV/Å | {' | '.join(TESTS)} |\n|---|---|---|---|")
    mean: dict[str, dict[str, float]] = {}
    for kind, results in errors.items():
        cells = []
        for name in TESTS:
            values = [result[name] for result in results if name in result]
            mean.setdefault(kind, {})[name] = float(np.mean(values)) if values else np.nan
            text = (
                f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""
            )
            cells.append(text)
        print(f"| {kind} | {' | '.join(cells)} |")
    rows = []
    for kind in ("naive", "replay"):
        for name in ("acac 300 K", "acac 600 K"):
            ours, peer = mean[kind][name], mean["scratch"][name]
            rows.append(row(f"{kind} against scratch, {name}", ours, peer, 1.0))
    ours, peer = mean["replay"]["3BPA 300 K"], mean["3BPA model"]["3BPA 300 K"]
    rows.append(row("replay against the first model, 3BPA 300 K", ours, peer, 1 / 1.2))
    return rows


def row(name: str, ours: float, peer: float, at_least: float) -> dict[str, Any]:
    """One criterion; errors, so less is better."""
    ratio = peer / ours
    print(f"{name}: {ours:.1f}, {peer:.1f} meV/Å, ratio {ratio:.2f} (at least {at_least:.2f})")
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "at_least": at_least}


def draw(errors: dict[str, list[dict[str, float]]], work: Path, path: Path) -> None:
    """Learning curves on acetylacetone (first seed), and errors on all test sets."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(1, 1.3))
    for kind in KINDS:
        lines = (work / f"{kind}-1" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        key = "valid_forces_rmse_eV_per_A"
        if kind != "replay":  # its validation is of both heads
            epochs = [1 + record["epoch"] for record in records if record.get(key)]
            values = [1000 * record[key] for record in records if record.get(key)]
            curves.plot(epochs, values, label=kind)
    curves.set(xlabel="epoch", ylabel="forces of acetylacetone, RMSE, meV/Å", yscale="log")
    curves.legend(frameon=False)
    width = 0.8 / len(errors)
    for i, (kind, results) in enumerate(errors.items()):
        means = [
            np.mean([r[name] for r in results]) if name in results[0] else np.nan for name in TESTS
        ]
        bars.bar(np.arange(len(TESTS)) + i * width, means, width, label=kind)
    bars.set_xticks(np.arange(len(TESTS)) + 0.4 - width / 2, list(TESTS))
    bars.set(ylabel="forces, RMSE, meV/Å", yscale="log")
    bars.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
