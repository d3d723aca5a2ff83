"""``from-mace-config``: the arguments of mace_run_train about inputs beside the geometry."""

from mace_train.interop.arguments import literal
from mace_train.interop.fine_tuning_arguments import Equal, Values
from mace_train.settings.inputs import (
    MACE_TORCH_DEFAULTS,
    data_settings,
    input_specs,
    known_keys,
)


def input_arguments(values: Values, equal: Equal, without: list[str]) -> None:
    """Add the settings of model and data to ``equal``.

    mace_run_train reads an input under its name or the ``key`` of its specification, whatever
    total_charge_key and the like say; here they count.
    """
    given = values["embedding_specs"]
    specs = input_specs(given and known_keys(literal("embedding_specs", given, dict)))
    if not specs:
        equal["train"]["model.use_embedding_readout"] = False  # without inputs it has no effect
        return
    of_inputs = data_settings(specs, {key: values[f"{key}_key"] for key in MACE_TORCH_DEFAULTS})
    equal["train"]["model.embedding_specs"] = {spec.name: spec.content() for spec in specs}
    equal["train"]["model.use_embedding_readout"] = values["use_embedding_readout"]
    equal["preprocess"] |= {f"data.{name}": value for name, value in of_inputs.items()}
