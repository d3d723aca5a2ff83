"""Make tests/calculators/descriptors.npz: descriptors by mace-torch's calculator.

    python scripts/make_reference_descriptors.py        (needs the extra "interop")

Of the models and structures in tests/model/reference (scripts/make_reference.py), so that the tests
compare without mace-torch: under MODEL/STRUCTURE/ all columns (all), invariant columns (invariant)
and those of the first layer (first). The file changes only when mace-torch does.
"""

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mace.calculators import MACECalculator  # noqa: E402
from make_reference import CASES  # noqa: E402

from tests.model.mace_torch import mace_torch_model  # noqa: E402
from tests.model.reference_file import read_reference  # noqa: E402

OUTPUT = ROOT / "tests" / "calculators" / "descriptors.npz"
CHOICES = {
    "all": {"invariants_only": False},
    "invariant": {},
    "first": {"invariants_only": False, "num_layers": 1},
}


def main() -> None:
    """Write the file and say how large it is."""
    arrays: dict[str, np.ndarray] = {}
    for seed, (name, (numbers, _, arguments)) in enumerate(CASES.items()):
        reference = read_reference(name)
        model = mace_torch_model(numbers, seed=seed, **arguments)
        for key, tensor in reference.tensors.items():
            assert torch.equal(model.state_dict()[key], tensor), f"{name}: {key} is another"
        calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64")
        for i, atoms in enumerate(reference.structures):
            for choice, words in CHOICES.items():
                arrays[f"{name}/{i}/{choice}"] = calculator.get_descriptors(atoms, **words)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT}: {len(arrays)} arrays, {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
