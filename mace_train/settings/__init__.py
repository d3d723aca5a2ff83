"""The one schema of all settings: every name, type, default, unit and limit.

Settings of the data, of what is learned, of how it runs, and of the commands are modules; all
names are imported from this package. YAML files under ``configs/`` state differences from these
defaults, the command line overrides both, and ``mace-train COMMAND --help`` prints this schema.
Names follow ``mace_run_train`` wherever the concept is the same. The string under a field is its
help text.
"""

from omegaconf import MISSING

from mace_train.settings.commands import (
    BalanceSettings,
    CompareSettings,
    DoctorSettings,
    EvaluateSettings,
    PredictionSettings,
    ReportSettings,
    SweepSettings,
    TrainSettings,
    TuneSettings,
)
from mace_train.settings.data import DataSettings, InspectSettings, PreprocessSettings
from mace_train.settings.exchange import (
    ExportSettings,
    FromMaceConfigSettings,
    ImportSettings,
)
from mace_train.settings.learning import (
    FinishSettings,
    FoundationSettings,
    LossSettings,
    OptimizerSettings,
    SchedulerSettings,
    StageTwoSettings,
)
from mace_train.settings.model import ModelSettings
from mace_train.settings.running import (
    BatchingSettings,
    CheckpointSettings,
    ClusterSettings,
    LoggerSettings,
)
from mace_train.settings.simulation import (
    MDSettings,
    RelaxSettings,
    SimulationSettings,
)
from mace_train.settings.structure_sets import (
    DescriptorsSettings,
    SelectSettings,
    StructureSetSettings,
)

__all__ = [
    "MISSING",
    "BalanceSettings",
    "BatchingSettings",
    "CheckpointSettings",
    "ClusterSettings",
    "CompareSettings",
    "DataSettings",
    "DescriptorsSettings",
    "DoctorSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FinishSettings",
    "FoundationSettings",
    "FromMaceConfigSettings",
    "ImportSettings",
    "InspectSettings",
    "LoggerSettings",
    "LossSettings",
    "MDSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PredictionSettings",
    "PreprocessSettings",
    "RelaxSettings",
    "ReportSettings",
    "SchedulerSettings",
    "SelectSettings",
    "SimulationSettings",
    "StageTwoSettings",
    "StructureSetSettings",
    "SweepSettings",
    "TrainSettings",
    "TuneSettings",
]
