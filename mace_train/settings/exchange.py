"""The settings of the commands that exchange models and settings with mace-torch."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from mace_train.checks import check_choice
from mace_train.errors import InputError
from mace_train.foundation_models.lookup import check_licence_name

DTYPES = ("float32", "float64")


@dataclass(kw_only=True)
class ImportSettings:
    """Import a model of mace-torch: `mace-train import model.model output=FOLDER`.

    Or a foundation model by its name: `mace-train import medium-mpa-0 output=FOLDER`; it is
    downloaded if neither mace-torch nor mace-train has done so. `mace-train import` alone lists the
    names. Nothing in the file is run: of a whole model (.model, a pickle) the tensors are read and
    the names of its parts. State dicts (.safetensors, .pt) need a header in JSON.
    """

    model_file: str | None = None
    """A .model file of mace-torch; a state dict with its header beside it (NAME.json); or the name
    of a foundation model. It may stand as the first word, or as model=FILE."""
    accept_licence: str | None = None
    """The licence of a foundation model that you accept, such as ASL (no commercial use)."""
    header: str | None = None
    """JSON file with the header of a state dict, when it has another name."""
    elements: Any = None
    """Elements to keep, such as [H,C,O]; null keeps all."""
    head: str | None = None
    """Head to keep, of a model with several; null keeps all."""
    trust: bool = False
    """Load a whole model with mace-torch (the extra interop), which runs what is in the file: only
    for files that you trust, and needed only for those that cannot be read otherwise."""
    output: str = "imported"
    """Folder for checkpoints/best.safetensors, which evaluate and export take as checkpoint."""

    def __post_init__(self) -> None:
        check_licence_name("accept_licence", self.accept_licence)
        if self.elements is None:
            return
        if not isinstance(self.elements, list) or not self.elements:
            raise InputError(f"elements={self.elements!r} must be a list, such as [H,C,O]")


@dataclass(kw_only=True)
class ExportSettings:
    """Export a trained model: `mace-train export RUN format=... output=FILE`."""

    checkpoint: str = MISSING
    """best.safetensors or last.safetensors, the output folder of a training or an import, or the
    name of a foundation model."""
    format: str = "mace-torch"
    """mace-torch (a .model file for its calculators and tools; needs the extra interop),
    state_dict (safetensors with mace-torch's names, and a header in JSON), aoti (a compiled library
    .pt2, which C++ loads) or export (a graph .pt2, which any PyTorch loads)."""
    head: str | None = None
    """Head to export, of a model with several; null exports all (mace-torch, state_dict)."""
    output: str = MISSING
    """The file to write."""
    device: str = "cpu"
    """Where a program of format aoti will run: cpu or cuda."""
    default_dtype: str | None = None
    """float32 or float64; null takes the checkpoint's."""

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("mace-torch", "state_dict", "aoti", "export"))
        check_choice("device", self.device, ("cpu", "cuda"))
        if self.default_dtype is not None:
            check_choice("default_dtype", self.default_dtype, DTYPES)


@dataclass(kw_only=True)
class FromMaceConfigSettings:
    """Settings equal to those of mace_run_train: `mace-train from-mace-config run.yaml`.

    Or after `--` the arguments themselves:
    `mace-train from-mace-config -- --name=first --train_file=train.xyz --r_max=4.5`.
    """

    config: str | None = None
    """YAML file as `mace_run_train --config` takes it."""
    arguments: list[str] | None = None
    """Arguments of mace_run_train, as a list; on the command line, what follows `--`.
    They override config."""
    output: str | None = None
    """Folder for preprocess-from-mace.yaml and train-from-mace.yaml; null prints them only."""

    def __post_init__(self) -> None:
        if self.config is None and not self.arguments:
            raise InputError(
                "from-mace-config needs a YAML file, or arguments of mace_run_train after --"
            )
