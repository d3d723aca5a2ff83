"""The settings of a model as ``mace-train train`` composes them: configs/model/ and words."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from mace_train import cli
from mace_train._paths import CONFIGS
from mace_train.settings import ModelSettings

RECIPES = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def model_settings(words: Sequence[str]) -> ModelSettings:
    """Of words such as ``model=omat_0`` and ``model.max_L=2``."""
    ConfigStore.instance().store(name="train_schema", node=cli.COMMANDS["train"].schema)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("train", overrides=["data_dir=a", "output=b", *words])
    GlobalHydra.instance().clear()
    settings: ModelSettings = OmegaConf.to_object(composed).model
    return settings
