"""Fine-tuning with mace_run_train in our settings, with what it changes on its own."""

from pathlib import Path
from typing import Any

from mace_train.foundation_models.table import LICENCES, MODELS, TO_ACCEPT

Values = dict[str, Any]
Equal = dict[str, Values]  # command -> our settings by dotted name

REPLAY = "pt_head"  # the name of mace-torch
_DOWNLOADED = ("small", "medium", "large")  # with which replay needs no file


def replays(values: Values) -> bool:
    """Whether mace_run_train would train a second head on data of the foundation model."""
    return (
        values["foundation_model"] is not None
        and values["multiheads_finetuning"]
        and (values["pt_train_file"] is not None or values["foundation_model"] in _DOWNLOADED)
    )


def with_its_changes(values: Values) -> Values:
    """The values that mace_run_train uses: replay sets loss, learning rate and average."""
    if not replays(values):
        return values
    changed = {**values, "loss": "universal"}
    if not values["force_mh_ft_lr"]:
        changed |= {"lr": 1e-4, "ema": True, "ema_decay": 0.99999}
    return changed


def fine_tuning(values: Values, equal: Equal, without: list[str]) -> None:
    """Import the foundation model, and train from it."""
    model = values["foundation_model"]
    if model is None:
        return
    imported = str(Path(values["work_dir"]) / (values["name"] or "mace") / "foundation")
    if Path(model).suffix == "" and model not in MODELS:
        without.append(f"--foundation_model={model}: mace-torch downloads it; give its .model file")
        model = f"{model}.model"
    equal["import"] |= {"model_file": model, "output": imported}
    if model in MODELS and MODELS[model].licence in TO_ACCEPT:
        licence = MODELS[model].licence
        without.append(
            f"--foundation_model={model}: its licence is the {LICENCES[licence]}; if you accept "
            f"it, add accept_licence={licence} to import"
        )
    train, data = equal["train"], equal["preprocess"]
    train["foundation.checkpoint"] = imported
    train["foundation.head"] = values["foundation_head"]
    if values["lora"]:
        train["foundation.lora_rank"] = values["lora_rank"]
        train["foundation.lora_alpha"] = values["lora_alpha"]
    train["foundation.elements"] = "all" if values["foundation_model_elements"] else "data"
    if str(values["E0s"]).lower() == "estimated":
        train["foundation.E0s"] = "estimated"
        data["data.E0s"] = "foundation"
    if replays(values):
        _replay(values, equal, without)
    E0s = data["data.E0s"]
    if "foundation" in (E0s.values() if isinstance(E0s, dict) else (E0s,)):
        data["data.foundation_model"] = imported
    without.append(
        "--r_max: mace-torch takes that of the foundation model; so give r_max=... of it"
    )


def _replay(values: Values, equal: Equal, without: list[str]) -> None:
    data = equal["preprocess"]
    replay = {"train_file": values["pt_train_file"], "valid_file": values["pt_valid_file"]}
    if replay["train_file"] in (None, "mp"):
        without.append("--pt_train_file: mace-torch downloads data to replay; give a file of them")
        replay["train_file"] = "replay.xyz"
    for name, file in {**replay, "E0s": "foundation"}.items():
        own = data.get(f"data.{name}")
        if own is not None and not _of_heads(own):
            own = {"Default": own}
        if file is not None:
            data[f"data.{name}"] = {**(own or {}), REPLAY: file}
    threshold = values["real_pt_data_ratio_threshold"]
    if threshold > 0:
        without.append(
            "--real_pt_data_ratio_threshold: mace-torch repeats the new structures "
            f"where they are fewer than {threshold} of those to replay; "
            "batching.head_sampling_ratios={Default: N} takes them N times per epoch"
        )
    if values["weight_pt_head"] != 1.0:
        equal["train"]["loss.head_weights"] = {REPLAY: values["weight_pt_head"]}


def _of_heads(value: Any) -> bool:
    """Whether a value is a mapping of heads; E0s may be one of atomic numbers."""
    return isinstance(value, dict) and not all(isinstance(key, int) for key in value)
