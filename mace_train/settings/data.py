"""What is read, and how it becomes shards."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mace_train.checks import as_files, check_at_least
from mace_train.errors import InputError


@dataclass(kw_only=True)
class DataSettings:
    """Input files, the names of their labels, and the energies of isolated atoms."""

    train_file: Any = MISSING
    """File(s) that ASE reads, also patterns like dir/*.xyz; validation: see valid_fraction."""
    valid_file: Any = None
    """File or files for validation; without them valid_fraction of train_file is split off."""
    test_file: Any = None
    """File or files for testing, kept apart from training."""
    valid_fraction: float = 0.1
    """Share of train_file that is split off for validation when valid_file is not given."""
    energy_key: str = "REF_energy"
    """Name of the energy (eV) in the files; falls back to what ASE parsed, announced."""
    forces_key: str = "REF_forces"
    """Name of the forces (eV/Å); falls back to what ASE parsed, announced."""
    stress_key: str = "REF_stress"
    """Name of the stress (eV/Å^3, ASE's sign); falls back to what ASE parsed, announced."""
    virials_key: str = "REF_virials"
    """Name of the virials (eV), read as stress = -virials / volume where there is no stress."""
    E0s: Any = None
    """Isolated-atom energies: null takes them from isolated-atom structures in train_file,
    'average' fits them by least squares, a mapping {1: -13.6, 8: ...} or a JSON file gives them."""
    keep_isolated_atoms: bool = False
    """Train on the isolated-atom structures too, instead of using them for E0s only."""

    def __post_init__(self) -> None:
        for name in ("train_file", "valid_file", "test_file"):
            if getattr(self, name) != MISSING:
                as_files(f"data.{name}", getattr(self, name))
        if not 0.0 <= self.valid_fraction < 1.0:
            raise InputError(f"data.valid_fraction={self.valid_fraction} must be in [0, 1)")
        if self.E0s is not None and not isinstance(self.E0s, (str, dict)):
            raise InputError(
                f"data.E0s={self.E0s!r} must be null, 'average', a JSON file or a mapping {{Z: eV}}"
            )


@dataclass(kw_only=True)
class PreprocessSettings:
    """Turn files that ASE reads into HDF5 shards with stored neighbour lists."""

    data: DataSettings = field(default_factory=DataSettings)
    output: str = MISSING
    """Folder that will hold train/, valid/, test/ and statistics.json."""
    r_max: float = 5.0
    """Cutoff radius of the neighbour lists, Å."""
    seed: int = 123
    """Seed of the training/validation split."""
    structures_per_shard: int = 4096
    """Structures in one HDF5 file."""
    workers: int = 1
    """Processes that build neighbour lists."""
    overwrite: bool = False
    """Replace an output folder that already holds shards."""

    def __post_init__(self) -> None:
        check_at_least("r_max", self.r_max, 0.0, strictly=True)
        check_at_least("structures_per_shard", self.structures_per_shard, 1)
        check_at_least("workers", self.workers, 1)
