"""Settings of the input data and of preprocessing."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mace_train.checks import check_choice, files_by_head
from mace_train.errors import InputError
from mace_train.foundation_models.lookup import check_licence_name
from mace_train.settings.inputs import InputKey, input_keys
from mace_train.settings.ranges import (
    ATOMIC_ENERGY,
    COUNT,
    CUTOFF,
    SEED,
    Range,
    bounded,
    check_ranges,
)


@dataclass(kw_only=True)
class DataSettings:
    """Input files, the names of their labels, and the energies of isolated atoms."""

    train_file: Any = MISSING
    """File(s) that ASE reads, databases, archives, folders or patterns like dir/*.xyz; or a mapping
    of heads (levels of theory) to these, such as {pbe: [a.xyz,b.xyz], r2scan: c.xyz}."""
    valid_file: Any = None
    """File or files for validation; without them valid_fraction of train_file is split off."""
    test_file: Any = None
    """File or files for testing, kept apart from training."""
    valid_fraction: float = bounded(
        0.1, Range(0, 1, exclude_maximum=True, reason="a share; training needs the rest")
    )
    """Share of train_file that is split off for validation when valid_file is not given."""
    group_key: str | None = None
    """Name of a value in the files (system, trajectory): structures with equal ones are a group,
    which that split does not divide."""
    structures_per_group: int = bounded(1, COUNT)
    """So many neighbouring structures of a file are such a group, for frames of a trajectory."""
    energy_key: str = "REF_energy"
    """Name of the energy (eV) in the files; without it, ASE's own energy is used, with a notice."""
    forces_key: str = "REF_forces"
    """Name of the forces (eV/Å); otherwise as for the energy."""
    stress_key: str = "REF_stress"
    """Name of the stress (eV/Å^3, ASE's sign); otherwise as for the energy."""
    virials_key: str = "REF_virials"
    """Name of the virials (eV), read as stress = -virials / volume where there is no stress."""
    head_key: str = "head"
    """Name of the head in the files; a structure without one has the head of its file."""
    info_keys: Any = None
    """Inputs of a model that are one number per structure, and their names in the files, such as
    {total_charge: charge, total_spin: spin}; or a list of names that are the same."""
    arrays_keys: Any = None
    """The same of inputs that are one number per atom."""
    input_defaults: Any = None
    """Their values where a structure has none, such as {temperature: 300}; without it total_charge
    and elec_temp are 0 and total_spin is 1, as in mace-torch, and others are required."""
    E0s: Any = bounded(None, ATOMIC_ENERGY)
    """Isolated-atom energies: null takes them from isolated-atom structures in train_file,
    'average' fits them by least squares, a mapping {1: -13.6, 8: ...} or a JSON file gives them,
    'foundation' takes those of foundation_model; or a mapping of heads to these."""
    foundation_model: str | None = None
    """A .model file of mace-torch, the output folder of a training or an import, or the name of a
    foundation model (`mace-train import` lists them)."""
    accept_licence: str | None = None
    """The licence of a foundation model that you accept, such as ASL (no commercial use)."""
    require_energy: bool = True
    """Refuse structures without an energy; false trains on what other labels they have."""
    keep_isolated_atoms: bool = False
    """Train on the isolated-atom structures too, instead of using them for E0s only."""
    skip_invalid: bool = False
    """Leave invalid structures out, with the reason in rejects.jsonl; else they are errors."""

    def __post_init__(self) -> None:
        for name in ("train_file", "valid_file", "test_file"):
            if getattr(self, name) != MISSING:
                files_by_head(f"data.{name}", getattr(self, name))
        check_ranges(self, "data.")
        self.inputs()
        check_licence_name("data.accept_licence", self.accept_licence)
        if self.accept_licence is not None and self.foundation_model is None:
            raise InputError(
                "data.accept_licence: needs data.foundation_model, whose licence it is"
            )
        if self.group_key is not None and self.structures_per_group > 1:
            raise InputError(
                "data.group_key and data.structures_per_group are both set; a structure has one "
                "group, set one of the two"
            )
        if self.E0s is not None and not isinstance(self.E0s, (str, dict)):
            raise InputError(
                f"data.E0s={self.E0s!r} must be null, 'average', 'foundation', a JSON file or a "
                "mapping {Z: eV}"
            )

    def inputs(self) -> tuple[InputKey, ...]:
        """What is read beside geometry and labels."""
        return input_keys(self.info_keys, self.arrays_keys, self.input_defaults)


@dataclass(kw_only=True)
class PreprocessSettings:
    """Turn files that ASE reads into HDF5 shards with stored neighbour lists."""

    data: DataSettings = field(default_factory=DataSettings)
    output: str = MISSING
    """Folder that will hold train/, valid/, test/ and statistics.json."""
    r_max: float = bounded(5.0, CUTOFF)
    """Cutoff radius of the neighbour lists, Å."""
    seed: int = bounded(123, SEED)
    """Seed of the training/validation split."""
    structures_per_shard: int = bounded(4096, COUNT)
    """Structures in one HDF5 file."""
    workers: int = bounded(1, Range(1, 4096, reason="no host has so many cores"))
    """Processes that read, find neighbours and write; under mpiexec or srun the ranks do."""
    float32: list[str] = field(default_factory=list)
    """Fields to store in single precision, of positions, forces, cell and stress."""
    store_edges: bool = True
    """Store neighbour lists; else loaders find the neighbours again, for a third of the space."""
    compression: str | None = None
    """gzip or lzf, of what belongs to atoms and edges: smaller, and slower to read."""
    dry_run: bool = False
    """Print what would be read, and write nothing; --dry-run is the same."""
    overwrite: bool = False
    """Replace an output folder that already holds shards."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in self.float32:
            check_choice("float32", name, ("positions", "forces", "cell", "stress"))
        if self.compression is not None:
            check_choice("compression", self.compression, ("gzip", "lzf"))


@dataclass(kw_only=True)
class InspectSettings:
    """Print, plot and verify what a folder of shards holds."""

    data_dir: str = MISSING
    """Folder written by `mace-train preprocess`, or one split of it."""
    verify: bool = True
    """Read every byte and compare with the checksums."""
    plots: bool = True
    """Draw inspect.png."""
    output: str | None = None
    """Folder for the plot; null takes data_dir."""
