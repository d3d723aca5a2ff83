"""The commands of the command line; nothing of them is imported before it runs."""

from dataclasses import dataclass

from mace_train import settings


@dataclass(frozen=True)
class Command:
    """One command: its settings, the function that carries it out, its short ways of writing."""

    schema: type
    target: str
    """module:function, imported when the command runs; the module bears the command's name."""
    leading: str | None = None
    """The setting that a first word without = sets: ``report RUN`` is ``report run=RUN``."""
    leading_list: str | None = None
    """The setting that all first words without = set: ``compare A B`` is ``runs=[A,B]``."""
    trailing_list: str | None = None
    """The setting that the words after ``--`` set."""
    alias: tuple[str, str] | None = None
    """(short, full) name of a setting whose short name Hydra reads as a config group."""
    one_process: bool = False
    """Refused when several ranks are started."""


COMMANDS = {
    "preprocess": Command(
        settings.PreprocessSettings, "mace_train.data.preprocess.preprocess:preprocess"
    ),
    "inspect": Command(
        settings.InspectSettings, "mace_train.data.inspect:inspect", leading="data_dir"
    ),
    "balance": Command(
        settings.BalanceSettings, "mace_train.balance.balance:balance", one_process=True
    ),
    "train": Command(settings.TrainSettings, "mace_train.train.train:train"),
    "evaluate": Command(settings.EvaluateSettings, "mace_train.evaluate.evaluate:evaluate"),
    "descriptors": Command(
        settings.DescriptorsSettings,
        "mace_train.evaluate.descriptors:descriptors",
        one_process=True,
    ),
    "select": Command(
        settings.SelectSettings, "mace_train.evaluate.select:select", one_process=True
    ),
    "report": Command(settings.ReportSettings, "mace_train.report.report:report", leading="run"),
    "compare": Command(
        settings.CompareSettings,
        "mace_train.evaluate.compare:compare",
        leading_list="runs",
        one_process=True,
    ),
    "sweep": Command(
        settings.SweepSettings,
        "mace_train.sweep.sweep:summarise",
        leading="folder",
        one_process=True,
    ),
    "tune": Command(
        settings.TuneSettings,
        "mace_train.sweep.tune:tune",
        trailing_list="training",
        one_process=True,
    ),
    "md": Command(settings.MDSettings, "mace_train.calculators.md:run_md", one_process=True),
    "relax": Command(
        settings.RelaxSettings, "mace_train.calculators.relax:relax", one_process=True
    ),
    "import": Command(
        settings.ImportSettings,
        "mace_train.interop.import_model:import_or_list",
        leading="model_file",
        alias=("model", "model_file"),
        one_process=True,
    ),
    "export": Command(
        settings.ExportSettings,
        "mace_train.export:export",
        leading="checkpoint",
        one_process=True,
    ),
    "from-mace-config": Command(
        settings.FromMaceConfigSettings,
        "mace_train.interop.from_mace_config:print_settings",
        leading="config",
        trailing_list="arguments",
        one_process=True,
    ),
    "doctor": Command(settings.DoctorSettings, "mace_train.doctor.doctor:examine"),
}
