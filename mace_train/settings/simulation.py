"""The settings of the commands that use a trained model: md, relax and export."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from mace_train.checks import as_files, check_choice
from mace_train.errors import InputError
from mace_train.settings.inputs import check_keys
from mace_train.settings.ranges import COUNT, SEED, Range, bounded, check_ranges


@dataclass(kw_only=True)
class SimulationSettings:
    """What every run with ASE needs."""

    checkpoint: Any = MISSING
    """Output folder of a training, a checkpoint file, or the name of a foundation model; several,
    or a pattern, are a committee."""
    head: str | None = None
    """Head of a model that has several."""
    structure: str = MISSING
    """File that ASE reads."""
    index: int = bounded(-1, Range(-(10**9), 10**9, reason="no file has so many structures"))
    """Which structure of the file; -1 is the last."""
    info_keys: Any = None
    """Names in the file of the model's inputs that are one number per structure, such as
    {total_charge: charge}; null: those of the model."""
    arrays_keys: Any = None
    """The same of inputs that are one number per atom."""
    repeat: list[int] = bounded([1, 1, 1], Range(1, 1000, reason="atoms must fit in memory"))
    """Copies of the cell along its three vectors."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu or cuda."""
    default_dtype: str | None = None
    """float32 or float64; null takes the checkpoint's."""
    kernels: str = "auto"
    """Fused operations: auto (compiled where possible), cpp (CPU), cuda (NVIDIA) or reference."""

    def __post_init__(self) -> None:
        if self.checkpoint != MISSING:
            as_files("checkpoint", self.checkpoint)
        check_keys(self.info_keys, self.arrays_keys)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("kernels", self.kernels, ("auto", "cpp", "cuda", "reference"))
        if self.default_dtype is not None:
            check_choice("default_dtype", self.default_dtype, ("float32", "float64"))
        check_ranges(self)
        if len(self.repeat) != 3:
            raise InputError(f"repeat={list(self.repeat)} must be three numbers, such as [2,2,1]")


@dataclass(kw_only=True)
class MDSettings(SimulationSettings):
    """Short molecular dynamics of a structure, with a fit of the energy's drift."""

    ensemble: str = "nve"
    """nve (velocity Verlet) or nvt (Langevin)."""
    temperature_K: float | None = bounded(300.0, Range(0, 1e7, reason="1e7 K are 860 eV per atom"))
    """Of the initial velocities, and of the Langevin thermostat; null (nve only) goes on with the
    velocities of the file."""
    friction_per_fs: float = bounded(
        0.01, Range(0, 1000, exclude_minimum=True, reason="1/fs; larger ones let nothing move")
    )
    """Friction of the Langevin thermostat, 1/fs."""
    timestep_fs: float = bounded(
        0.5, Range(0, 1000, exclude_minimum=True, reason="fs; vibrations of atoms take 10 to 1000")
    )
    """Time step, fs."""
    steps: int = bounded(2000, COUNT)
    """Steps to run."""
    interval: int = bounded(10, COUNT)
    """Steps between frames of the trajectory and points of the plot."""
    seed: int = bounded(123, SEED)
    """Seed of the velocities and of the thermostat."""
    trajectory: str = "extxyz"
    """Format of the trajectory: extxyz or traj."""
    output: str = "md"
    """Folder for the trajectory, md.json and energy.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ensemble", self.ensemble, ("nve", "nvt"))
        check_choice("trajectory", self.trajectory, ("extxyz", "traj"))
        if self.temperature_K is None and self.ensemble == "nvt":
            raise InputError("temperature_K=null: a thermostat (ensemble=nvt) needs a temperature")


@dataclass(kw_only=True)
class RelaxSettings(SimulationSettings):
    """Move the atoms, and the cell if asked for, to a minimum of the energy."""

    algorithm: str = "fire"
    """fire or lbfgs."""
    relax_cell: bool = False
    """Relax the cell too, along its periodic directions; all directions need lattice vectors."""
    pressure_GPa: float = bounded(
        0.0, Range(-1e6, 1e6, reason="GPa; the centre of Jupiter has some 7000")
    )
    """External pressure on a cell that relaxes and is periodic in all three directions."""
    fmax: float = bounded(
        0.01, Range(0, 1000, exclude_minimum=True, reason="eV/Å; any structure has smaller forces")
    )
    """Largest force at which it has converged, eV/Å (with relax_cell of the cell too)."""
    max_steps: int = bounded(1000, COUNT)
    """Steps after which it stops in any case."""
    trajectory: str = "extxyz"
    """Format of the trajectory: extxyz or traj."""
    output: str = "relaxed"
    """Folder for relaxed.extxyz, the trajectory, relax.json and relax.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("algorithm", self.algorithm, ("fire", "lbfgs"))
        check_choice("trajectory", self.trajectory, ("extxyz", "traj"))
        if self.pressure_GPa and not self.relax_cell:
            raise InputError(f"pressure_GPa={self.pressure_GPa} needs relax_cell=true")
