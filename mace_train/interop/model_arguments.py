"""Arguments of mace_run_train that say what the model is, as settings of ours."""

import re

from mace_train.interop.arguments import literal
from mace_train.interop.fine_tuning_arguments import Equal, Values
from mace_train.settings.model import AGNOSTIC, DENSITY, INTERACTION_BLOCKS, RADIAL_TYPES

MODEL_ARGUMENTS = (
    *("model", "hidden_irreps", "num_channels", "max_L", "radial_MLP", "radial_type"),
    *("interaction", "interaction_first", "edge_irreps", "use_edge_irreps_first"),
)


def model(values: Values, equal: Equal, without: list[str]) -> None:
    """Put the settings of the model into ``equal``, and lines about what is not here."""
    train = equal["train"]
    channels, max_L = values["num_channels"], values["max_L"]
    if values["hidden_irreps"] is not None and (channels is None or max_L is None):
        channels, max_L = _irreps(values["hidden_irreps"], without)
    train["model.num_channels"] = 128 if channels is None else int(channels)
    train["model.max_L"] = 1 if max_L is None else int(max_L)
    train["model.radial_MLP"] = literal("radial_MLP", values["radial_MLP"], list)
    for name in ("model", "edge_irreps", "use_edge_irreps_first", "radial_type"):
        train[f"model.{name}"] = values[name]
    for name in ("interaction", "interaction_first"):
        block = values[name]
        train[f"model.{name}"] = block
        if block not in INTERACTION_BLOCKS:
            without.append(f"--{name}={block}: one of {', '.join(INTERACTION_BLOCKS)}")
            del train[f"model.{name}"]
    if values["use_edge_irreps_first"] and values["edge_irreps"] is None:
        without.append("--use_edge_irreps_first=True: does nothing without --edge_irreps")
        del train["model.use_edge_irreps_first"]
    if values["radial_type"] not in RADIAL_TYPES:
        without.append(
            f"--radial_type={values['radial_type']}: one of {', '.join(RADIAL_TYPES)}; PyTorch "
            "does not differentiate the polynomials of chebyshev, so mace-torch has no forces of it"
        )
        del train["model.radial_type"]
    # mace_run_train takes no residual block there in a MACE, whatever is said
    without_residual = values["interaction_first"] in (AGNOSTIC, DENSITY)
    if not without_residual and values["model"] == "MACE":
        train["model.interaction_first"] = None
    if values["model"] not in ("MACE", "ScaleShiftMACE"):
        without.append(f"--model={values['model']}: MACE and ScaleShiftMACE are here")
        del train["model.model"]


def _irreps(text: str, without: list[str]) -> tuple[int, int]:
    """(channels, highest degree) of hidden_irreps such as 128x0e + 128x1o."""
    found = re.findall(r"(\d+)\s*x\s*(\d+)([eo])", text)
    widths = {int(n) for n, _, _ in found}
    natural = [(str(d), "oe"[d % 2 == 0]) for d in range(len(found))]
    if len(widths) != 1 or [(d, parity) for _, d, parity in found] != natural:
        without.append(f"--hidden_irreps={text}: degrees 0e, 1o, ... of one width are here")
    return max(widths, default=128), max(len(found) - 1, 0)
