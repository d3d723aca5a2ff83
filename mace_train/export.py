"""``mace-train export``: a trained model -> a file for mace-torch, or a program of PyTorch."""

from mace_train.settings import ExportSettings


def export(settings: ExportSettings) -> None:
    """Write the format that the settings name; what one format needs, others do not import."""
    if settings.format in ("mace-torch", "state_dict"):
        from mace_train.interop.export_model import export_model

        export_model(settings)
    else:
        from mace_train.calculators.torch_program import export_command

        export_command(settings)
