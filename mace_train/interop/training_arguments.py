"""What mace_run_train's loop does beyond its arguments, in our settings or said in a line.

Its loop is mace/tools/train.py (0.3.16), its second stage ``get_swa`` in tools/scripts_utils.py.
"""

import ast
from typing import Any

Values = dict[str, Any]
Equal = dict[str, Values]  # command -> our settings by dotted name

REPLAY = "pt_head"  # mace-torch puts it before all other heads
_SQUARED = "squared errors of energy and forces"
_IN_STAGE_TWO = {  # losses that mace-torch changes there
    "huber": f"mace-torch's stage two has {_SQUARED}; here it keeps the loss huber",
    "l1l2energyforces": f"mace-torch's stage two has {_SQUARED}; here it keeps the loss l1l2",
    "forces_only": "mace_run_train refuses it; here stage two has stage_two.energy_weight",
}


def as_its_loop(values: Values, equal: Equal, without: list[str]) -> None:
    """Change ``equal`` to what the loop does with ``values``; where it cannot, add a line."""
    train = equal["train"]
    train["scheduler.scheduler_patience"] = _patience_in_validations(values)
    heads = _heads(equal["preprocess"])
    if len(heads) > 1:
        train["checkpoints.head"] = heads[-1]  # the only one whose loss mace-torch looks at
    if values["lbfgs"]:  # its schedule and stage two change the rate of the optimizer before
        train |= {"scheduler.scheduler": "constant", "stage_two.lr": 1.0}
    averaged = "lbfgs" if values["lbfgs"] else values["optimizer"]
    if values["ema"] and averaged in ("schedulefree", "lbfgs"):
        without.append(
            f"--ema with {averaged}: mace-torch averages these weights too; here the average is "
            "for adam and adamw"
        )
    if train["stage_two.enabled"]:
        _stage_two(values, without)


def _patience_in_validations(values: Values) -> int:
    """mace-torch counts every epoch, also those without a validation."""
    patience, interval = int(values["scheduler_patience"]), max(int(values["eval_interval"]), 1)
    return max((patience + 1) // interval - 1, 0) if interval > 1 else patience


def _heads(preprocess: Values) -> list[str]:
    """The heads in mace-torch's order."""
    files = preprocess.get("data.train_file")
    names = [str(name) for name in files] if isinstance(files, dict) else []
    return sorted(names, key=lambda name: name != REPLAY)


def _stage_two(values: Values, without: list[str]) -> None:
    """Lines about stage two."""
    loss = values["loss"]
    if loss in _IN_STAGE_TWO:
        without.append(f"--swa with --loss={loss}: {_IN_STAGE_TWO[loss]}")
    factors = values["lr_params_factors"]
    factors = ast.literal_eval(factors) if isinstance(factors, str) else factors
    if any(factor != 1.0 for factor in factors.values()):
        without.append(
            "--swa with --lr_params_factors: in mace-torch's stage two all groups have swa_lr; "
            "here the factors hold in both stages"
        )
