"""Do balanced bins learn like random batches? Validation errors over epochs, several seeds.

    python scripts/bench/learning_of_bins.py --json FILE --figure FILE [--seeds 1 2 3] [--epochs 20]

The same model, structures of mixed sizes (the embedded example data), mean batch size and seeds;
only the packer differs: balanced bins, or uniformly random batches of a fixed number. Passes when
the mean final force error with balanced bins is at most 5 % above that of random batches, or within
the range over seeds of the latter.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.preprocess import preprocess  # noqa: E402
from mace_train.settings import (  # noqa: E402
    BatchingSettings,
    ClusterSettings,
    DataSettings,
    LoggerSettings,
    ModelSettings,
    OptimizerSettings,
    PreprocessSettings,
    TrainSettings,
)
from mace_train.train.train import train  # noqa: E402

PACKERS = ("fixed_count", "balanced")


def curve(prepared: Path, output: Path, packer: str, seed: int, epochs: int) -> list[float]:
    """Force RMSE on the validation set after every epoch, eV/Å."""
    train(
        TrainSettings(
            data_dir=str(prepared),
            output=str(output),
            seed=seed,
            max_num_epochs=epochs,
            model=ModelSettings(num_channels=16, max_L=1, max_ell=2, correlation=2),
            optimizer=OptimizerSettings(lr=0.01),
            batching=BatchingSettings(packer=packer, batch_size=8),
            logger=LoggerSettings(progress=False),
            cluster=ClusterSettings(device="cpu", num_threads=1),
        )
    )
    lines = (output / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    key = next(name for name in records[0] if "forces_rmse" in name)
    return [record[key] for record in records]


def main() -> int:
    """Train with both packers and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    curves: dict[str, list[list[float]]] = {packer: [] for packer in PACKERS}
    with tempfile.TemporaryDirectory() as folder:
        data = DataSettings(train_file=str(EXAMPLE_DATA / "train.extxyz.gz"), valid_fraction=0.1)
        settings = PreprocessSettings(data=data, r_max=4.5, output=f"{folder}/data")
        prepared = preprocess(settings)
        for seed in arguments.seeds:
            for packer in PACKERS:
                output = Path(folder) / f"{packer}-{seed}"
                curves[packer].append(curve(prepared, output, packer, seed, arguments.epochs))
                print(f"{packer}, seed {seed}: {curves[packer][-1][-1]:.4f}", flush=True)
    final = {packer: np.array(curves[packer])[:, -1] for packer in PACKERS}
    ratio = float(final["fixed_count"].mean() / final["balanced"].mean())
    within = bool(final["balanced"].mean() <= final["fixed_count"].max())
    for packer in PACKERS:
        low, high = final[packer].min(), final[packer].max()
        print(f"{packer}: {final[packer].mean():.4f} ({low:.4f} to {high:.4f})")
    row = {
        "name": f"force error after {arguments.epochs} epochs, random / balanced",
        "ours": float(final["balanced"].mean()),
        "peer": float(final["fixed_count"].mean()),
        "ratio": ratio,
        "at_least": 0.95,
        "curves": curves,
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row], indent=1) + "\n")
    if arguments.figure is not None:
        _figure(curves).savefig(arguments.figure, dpi=120)
    return int(ratio < 0.95 and not within)


def _figure(curves: dict[str, list[list[float]]]) -> Figure:
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for packer, label in (("fixed_count", "random batches of 8"), ("balanced", "balanced bins")):
        values = np.array(curves[packer])
        epochs = np.arange(1, values.shape[1] + 1)
        (line,) = axes.semilogy(epochs, values.mean(axis=0), label=label)
        axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set(xlabel="epoch", ylabel="validation force RMSE, eV/Å")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title=f"mean and range, {len(curves['balanced'])} seeds")
    return figure


if __name__ == "__main__":
    sys.exit(main())
