"""The settings of the commands that read sets of structures of any size: descriptors, select."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mace_train.checks import as_files, check_choice
from mace_train.errors import InputError
from mace_train.settings.inputs import check_keys
from mace_train.settings.ranges import COUNT, SEED, Range, bounded, check_ranges
from mace_train.settings.running import BatchingSettings, ClusterSettings

ELEMENT_FILTERS = ("subset", "overlap", "equal", "superset")
_LAYERS = Range(-1, 100, reason="published models have 1 to 4 layers; -1 takes all")


@dataclass(kw_only=True)
class StructureSetSettings:
    """A set of structures, read in order and never held in memory, and a model for it.

    Batches have batching.valid_batch_size structures on average, or batching.max_atoms and
    batching.max_edges; of the other settings of a group only cluster.device, cluster.kernels,
    cluster.num_threads and (shards) cluster.num_workers count.
    """

    structures: Any = None
    """File or files that ASE reads, folders or patterns; or give data_dir."""
    data_dir: str | None = None
    """Folder written by `mace-train preprocess`; or give structures."""
    split: str = "train"
    """Which part of a preprocessed folder: train, valid or test."""
    info_keys: Any = None
    """Names in files of inputs that are one number per structure, such as {total_charge: charge};
    null: those of the model."""
    arrays_keys: Any = None
    """The same of inputs that are one number per atom."""
    num_layers: int = bounded(-1, _LAYERS)
    """Descriptors of the first so many layers; -1 takes all."""
    default_dtype: str | None = None
    """float32 or float64; null takes the checkpoint's."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        as_files("structures", self.structures)
        check_keys(self.info_keys, self.arrays_keys)
        check_choice("split", self.split, ("train", "valid", "test"))
        if self.default_dtype is not None:
            check_choice("default_dtype", self.default_dtype, ("float32", "float64"))
        check_ranges(self)
        if self.num_layers == 0:
            raise InputError("num_layers=0: no descriptors are left; give 1 or more, or -1 for all")


@dataclass(kw_only=True)
class DescriptorsSettings(StructureSetSettings):
    """Write the descriptors of a set of structures to an HDF5 file, see calculators/README.md.

    `mace-train descriptors checkpoint=RUN data_dir=prepared output=descriptors.h5`
    """

    checkpoint: str = MISSING
    """Output folder of a training or an import, or a checkpoint file."""
    output: str = MISSING
    """The file to write, .h5 or .hdf5."""
    invariants_only: bool = True
    """Leave out what turns with the structure."""
    per_atom: bool = False
    """Write the descriptors of every atom too, not the mean over each structure alone."""


@dataclass(kw_only=True)
class SelectSettings(StructureSetSettings):
    """Choose structures of a large set, such as the old data of a fine-tuning.

    `mace-train select checkpoint=RUN structures=large.xyz n=500 elements=[H,C,O] output=old.extxyz`
    """

    checkpoint: str | None = None
    """Output folder of a training or an import, or a checkpoint file: the model whose descriptors
    and pseudolabels are taken. method=random with the labels of the set needs none."""
    output: str = MISSING
    """The extended XYZ file to write, with labels as `mace-train preprocess` reads them by
    default."""
    n: int = bounded(MISSING, COUNT)
    """Structures to choose; isolated atoms come in addition."""
    elements: Any = None
    """Elements to filter by, such as [H,C,O] or [1,6,8]; null takes those of elements_of, or all
    structures."""
    elements_of: Any = None
    """File or files, or a folder written by `mace-train preprocess`, whose elements are taken."""
    element_filter: str = "subset"
    """Which structures pass, by their elements: subset (none but the given), overlap (at least one
    of the given), equal (exactly the given) or superset (all of the given, and any others)."""
    method: str = "farthest"
    """farthest (farthest-point sampling on the mean descriptor of each structure) or random."""
    seed: int = bounded(123, SEED)
    """Seed of the first structure, of random ones and of a random projection."""
    max_memory_gb: float = bounded(
        8.0, Range(0, 1e5, exclude_minimum=True, reason="no host has more memory")
    )
    """Memory (10^9 bytes) of the descriptors of all structures, in single precision; where they
    need more, a random projection to fewer columns is used, which is logged."""
    pseudolabels: bool = False
    """Write energy, forces and stress that the model predicts, in place of the set's labels."""
    head: str | None = None
    """Head of a model with several that predicts pseudolabels."""
    isolated_atoms: bool = True
    """Write isolated atoms first, from which preprocess takes E0s: with pseudolabels one of each
    element with the model's E0; else those of the set (shards: with the E0s of statistics.json)."""
    energy_key: str = "REF_energy"
    """Name of the energy (eV) in files that ASE reads."""
    forces_key: str = "REF_forces"
    """Name of the forces (eV/Å)."""
    stress_key: str = "REF_stress"
    """Name of the stress (eV/Å^3)."""
    virials_key: str = "REF_virials"
    """Name of the virials (eV)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("element_filter", self.element_filter, ELEMENT_FILTERS)
        check_choice("method", self.method, ("farthest", "random"))
        as_files("elements_of", self.elements_of)
        if self.elements is not None and self.elements_of is not None:
            raise InputError("elements and elements_of are both set; give one of the two")
        if self.element_filter != "subset" and self.elements is None and self.elements_of is None:
            raise InputError(
                f"element_filter={self.element_filter} needs elements=[...] or elements_of=FILE"
            )
        if self.elements is not None and (not isinstance(self.elements, list) or not self.elements):
            raise InputError(f"elements={self.elements!r} must be a list, such as [H,C,O]")
        if self.head is not None and not self.pseudolabels:
            raise InputError(
                f"head={self.head} says which head predicts pseudolabels; set pseudolabels=true, "
                "or leave head out"
            )
