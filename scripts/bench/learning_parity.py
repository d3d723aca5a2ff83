"""Learning parity with mace-torch: the same data, model, optimizer and epochs give the same error.

Both programs train on acetylacetone (300 K, 450 + 50 structures, isolated atoms for E0s) with
equal hyperparameters, from their command lines; each final model then predicts the 300 K and 600 K
test sets, and the force RMSE of the 300 K set, as a mean over seeds, must agree within 10 %.

    python scripts/bench/learning_parity.py --data FOLDER --json parity.json [--recipe universal]
    python scripts/bench/learning_parity.py --data FILE --recipe small_set --epochs 8 --seeds 5

Recipes: weighted (energy and forces), universal (that loss), stage_two (the last quarter of the
epochs with weights and learning rate of their own), small_set (energy, forces and stress of a few
crystals, 16 channels, E0s by least squares); all with the moving average of the weights.

FOLDER holds the BOTNet acetylacetone files (train_300K.extxyz.gz, isolated_atoms.extxyz.gz,
test_MD_300K.extxyz.gz, test_MD_600K.extxyz.gz; arXiv 2205.06643) with REF_energy and REF_forces.
FILE of small_set is extended XYZ (may be .gz) with REF_stress too, of which 100 structures of at
most 80 atoms are drawn for training (a tenth of them to validate) and 100 to test.
Finished trainings in --work are used again, so an interrupted run continues.
"""

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

N_SMALL, MOST_ATOMS = 100, 80  # of small_set
# equal hyperparameters, by the names of mace_run_train
EQUAL = {
    "r_max": 5.0,
    "num_channels": 32,
    "max_L": 1,
    "max_ell": 3,
    "correlation": 3,
    "num_interactions": 2,
    "lr": 0.01,
    "weight_decay": 5e-7,
    "energy_weight": 1.0,
    "forces_weight": 100.0,
    "clip_grad": 10.0,
    "ema_decay": 0.99,
    "batch_size": 5,
    "default_dtype": "float32",
}
# what is different in a recipe: options of mace_run_train, and the same as our settings
RECIPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "weighted": ({}, []),
    "universal": (
        {"loss": "universal", "forces_weight": 10.0, "stress_weight": 0.0},
        ["loss=universal", "loss.forces_weight=10", "loss.stress_weight=0"],
    ),
    "stage_two": (
        {"stage_two": None, "stage_two_lr": 1e-3, "stage_two_energy_weight": 1000.0},
        ["stage_two=swa", "stage_two.lr=0.001", "stage_two.energy_weight=1000"],
    ),
    "small_set": (
        {"loss": "stress", "stress_weight": 1.0, "num_channels": 16, "E0s": "average"},
        ["loss=stress", "loss.stress_weight=1", "model.num_channels=16"],
    ),
}


def tests_of(recipe: str) -> tuple[str, ...]:
    """The names of the test sets, the one that counts first."""
    return ("test",) if recipe == "small_set" else ("300K", "600K")


def main() -> int:
    """Train both programs, evaluate, print the table; 0 if they agree."""
    arguments = _arguments()
    work = arguments.work.resolve() / arguments.recipe
    work.mkdir(parents=True, exist_ok=True)
    prepare = prepare_small if arguments.recipe == "small_set" else prepare_acac
    files = prepare(arguments.data, work)
    results: dict[str, list[dict[str, Any]]] = {"mace-torch": [], "mace-train": []}
    for seed in range(1, arguments.seeds + 1):
        for program, run in (("mace-torch", run_mace_torch), ("mace-train", run_mace_train)):
            result = _cached(work / f"{program}-{seed}.json", run, files, work, seed, arguments)
            results[program].append(result)
            print(f"{program} seed {seed}: {json.dumps(result)}", flush=True)
    rows = compare(results, arguments.recipe)
    _print_table(results, rows, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the AcAc files, or FILE"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/learning_parity"))
    parser.add_argument("--recipe", choices=RECIPES, default="weighted")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def prepare_small(data: Path, work: Path) -> dict[str, Path]:
    """Training, validation and test files of structures that are drawn at random."""
    content = data.read_bytes()
    if data.suffix == ".gz":
        content = gzip.decompress(content)  # ASE seeks, which is slow in .gz
    frames = read(io.StringIO(content.decode()), ":", format="extxyz")
    fitting = [atoms for atoms in frames if _fits(atoms)]
    structures = list({atoms.info["REF_energy"]: atoms for atoms in fitting}.values())  # no copies
    order = np.random.default_rng(0).permutation(len(structures))[: 2 * N_SMALL]
    chosen = [structures[i] for i in order]
    n_valid = N_SMALL // 10
    return _written(
        work,
        {
            "train": chosen[n_valid:N_SMALL],
            "valid": chosen[:n_valid],
            "test": chosen[N_SMALL:],
        },
    )


def _fits(atoms: Atoms) -> bool:
    return len(atoms) <= MOST_ATOMS and "REF_stress" in atoms.info


def prepare_acac(data: Path, work: Path) -> dict[str, Path]:
    """Plain extxyz files with the split that both programs use."""
    structures = read(data / "train_300K.extxyz.gz", ":")
    order = np.random.default_rng(0).permutation(len(structures))
    valid, train = order[:50], order[50:]
    isolated = read(data / "isolated_atoms.extxyz.gz", ":")
    for atoms in isolated:
        atoms.info["config_type"] = "IsolatedAtom"
    sets = {
        "train": isolated + [structures[i] for i in train],
        "valid": [structures[i] for i in valid],
        **{name: read(data / f"test_MD_{name}.extxyz.gz", ":") for name in ("300K", "600K")},
    }
    return _written(work, sets)


def _written(work: Path, sets: dict[str, list[Atoms]]) -> dict[str, Path]:
    files = {name: work / f"{name}.xyz" for name in sets}
    for name, path in files.items():
        if not path.exists():
            write(path, sets[name], format="extxyz")
    return files


def _cached(path: Path, run: Any, *arguments: Any) -> dict[str, Any]:
    if path.exists():
        return json.loads(path.read_text())
    start = time.perf_counter()
    result = run(*arguments) | {"seconds": round(time.perf_counter() - start, 1)}
    path.write_text(json.dumps(result) + "\n")
    return result


def run_mace_torch(
    files: dict[str, Path], work: Path, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train with mace_run_train, predict with mace_eval_configs; RMSEs of both test sets."""
    folder = work / f"mace-torch-{seed}"
    folder.mkdir(exist_ok=True)
    options = {
        **EQUAL,
        "name": "peer",
        "seed": seed,
        "model": "ScaleShiftMACE",
        "train_file": files["train"],
        "valid_file": files["valid"],
        "valid_batch_size": 10,
        "max_num_epochs": arguments.epochs,
        "device": "cpu",
        "plot": False,
        "work_dir": folder,
        **RECIPES[arguments.recipe][0],
    }
    command = [_program("mace_run_train"), "--ema"]
    command += [f"--{k}" if value is None else f"--{k}={value}" for k, value in options.items()]
    _call(command, folder, arguments.threads)
    model = folder / ("peer_stagetwo.model" if "stage_two" in options else "peer.model")
    result = {}
    for name in tests_of(arguments.recipe):
        predictions = folder / f"test_{name}.xyz"
        command = [_program("mace_eval_configs"), f"--configs={files[name]}"]
        command += [f"--model={model}", f"--output={predictions}"]
        command += ["--device=cpu", "--default_dtype=float32", "--batch_size=10"]
        _call(command, folder, arguments.threads)
        result |= _rmse(predictions, files[name], name)
    return result


def run_mace_train(
    files: dict[str, Path], work: Path, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train and predict with this package's commands; RMSEs of both test sets."""
    folder = work / f"mace-train-{seed}"
    folder.mkdir(exist_ok=True)
    ours = [sys.executable, "-m", "mace_train"]
    prepared = folder / "prepared"
    _call(
        [
            *ours,
            "preprocess",
            f"data.train_file={files['train']}",
            f"data.valid_file={files['valid']}",
            f"r_max={EQUAL['r_max']}",
            f"output={prepared}",
            "overwrite=true",
            *(["data.E0s=average"] if arguments.recipe == "small_set" else []),
        ],
        folder,
        arguments.threads,
    )
    groups = {
        "model": ("num_channels", "max_L", "max_ell", "correlation", "num_interactions"),
        "optimizer": ("lr", "weight_decay"),
        "loss": ("energy_weight", "forces_weight"),
        "batching": ("batch_size",),
    }
    settings = [f"{group}.{name}={EQUAL[name]}" for group in groups for name in groups[group]]
    settings += [f"{name}={EQUAL[name]}" for name in ("clip_grad", "ema_decay", "default_dtype")]
    settings += ["ema=true", "batching.packer=fixed_count", f"seed={seed}"]
    settings += [f"max_num_epochs={arguments.epochs}", "restart_latest=true"]
    settings += [f"data_dir={prepared}", f"output={folder / 'run'}"]
    settings += RECIPES[arguments.recipe][1]
    _call([*ours, "train", *settings], folder, arguments.threads)
    result = {}
    for name in tests_of(arguments.recipe):
        output = folder / f"test_{name}"
        _call(
            [
                *ours,
                "evaluate",
                f"checkpoint={folder / 'run'}",
                f"test_file={files[name]}",
                f"output={output}",
                "plots=false",
            ],
            folder,
            arguments.threads,
        )
        result |= _rmse(output / "predictions.extxyz", files[name], name)
    return result


def _program(name: str) -> str:
    """A console script of the environment this script runs in."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise SystemExit(f"{name} not found beside {sys.executable}: pip install mace-torch")
    return str(path)


def _call(command: list[Any], folder: Path, threads: int) -> None:
    """Run a command with its output in folder/log.txt; stop with its tail if it fails."""
    log = folder / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(log, "a") as handle:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed:\n{tail}")


def _rmse(predictions: Path, reference: Path, name: str) -> dict[str, float]:
    """RMSE of energy per atom (meV) and force components (meV/Å), computed here for both."""
    predicted, truth = read(predictions, ":"), read(reference, ":")
    energy = [
        (p.info["MACE_energy"] - t.info["REF_energy"]) / len(t)
        for p, t in zip(predicted, truth, strict=True)
    ]
    forces = np.concatenate(
        [
            p.arrays["MACE_forces"] - t.arrays["REF_forces"]
            for p, t in zip(predicted, truth, strict=True)
        ]
    )
    return {
        f"energy_rmse_{name}_meV_per_atom": float(1000 * np.sqrt(np.mean(np.square(energy)))),
        f"forces_rmse_{name}_meV_per_A": float(1000 * np.sqrt(np.mean(forces**2))),
    }


def compare(results: dict[str, list[dict[str, Any]]], recipe: str) -> list[dict[str, Any]]:
    """Rows for --json: the two means and the smaller over the larger, which must reach 0.9.

    In small_set, whose results scatter by a tenth and more, two standard errors of the ratio are
    allowed where that is less.
    """
    key = f"forces_rmse_{tests_of(recipe)[0]}_meV_per_A"
    of_program = {name: np.array([result[key] for result in results[name]]) for name in results}
    ours, peer = (float(of_program[name].mean()) for name in ("mace-train", "mace-torch"))
    ratio, at_least = min(ours / peer, peer / ours), 0.9
    n_seeds = len(of_program["mace-train"])
    if recipe == "small_set" and n_seeds > 1:
        relative = [v.std(ddof=1) / v.mean() for v in of_program.values()]
        at_least = min(at_least, 1 - 2 * float(np.linalg.norm(relative)) / n_seeds**0.5)
    name = f"{recipe} {key}"
    return [{"name": name, "ours": ours, "peer": peer, "ratio": ratio, "at_least": at_least}]


def _print_table(
    results: dict[str, list[dict[str, Any]]],
    rows: list[dict[str, Any]],
    arguments: argparse.Namespace,
) -> None:
    """A Markdown table of the mean over seeds and the spread."""
    print(f"\n{arguments.epochs} epochs, {arguments.seeds} seeds, {arguments.threads} threads\n")
    keys = [key for key in results["mace-torch"][0] if key != "seconds"]
    print("| program | " + " | ".join(key.replace("_", " ") for key in keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for program, runs in results.items():
        cells = []
        for key in keys:
            values = [run[key] for run in runs]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        print(f"| {program} | " + " | ".join(cells) + " |")
    for row in rows:
        verdict = "ok" if row["ratio"] >= row["at_least"] else "FALLS SHORT"
        print(
            f"\n{row['name']}: ratio {row['ratio']:.3f}, at least {row['at_least']:.3f}: {verdict}"
        )


if __name__ == "__main__":
    sys.exit(main())
