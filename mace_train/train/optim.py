"""Optimizers over mace-torch's parameter groups, and their state as tensors and numbers."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from mace_train.checks import did_you_mean
from mace_train.errors import InputError
from mace_train.settings import OptimizerSettings

LOGGER = logging.getLogger("mace_train")
_SHORT_NAMES = {  # of mace-torch's options, and of what this project calls inputs
    "embedding": ("node_embedding",),
    "inputs": ("joint_embedding", "embedding_readout"),
}
_DECAYED_IN_INTERACTIONS = ("linear.weight", "skip_tp_full.weight")
_LBFGS: dict[str, Any] = {  # as mace-torch
    "history_size": 200,
    "max_iter": 20,
    "line_search_fn": "strong_wolfe",
}
# what a schedule-free optimizer counts in its groups rather than in the state of a parameter
_GROUP_STATE = ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """mace-torch's groups: decay on the mixing linears and the products, none elsewhere.

    ``lr_factor`` of a group is its learning rate relative to ``lr``; where parts of a group have
    other ones, they are groups of their own, of the same name. Parameters that do not require a
    gradient are in no group.
    """
    named = list(model.named_parameters())
    groups: dict[str, dict[float, list[nn.Parameter]]] = {
        "embedding": {},
        "interactions_decay": {},
        "interactions_no_decay": {},
        "products": {},
        "readouts": {},
        **({"inputs": {}} if any(_group_of(n) == "inputs" for n, _ in named) else {}),
    }
    factors, decayed = lr_factors(model, settings), ("interactions_decay", "products")
    for name, parameter in named:
        if parameter.requires_grad:
            groups[_group_of(name)].setdefault(factors[name], []).append(parameter)
    return [
        {
            "name": name,
            "params": members,
            "weight_decay": settings.weight_decay if name in decayed else 0.0,
            "lr_factor": factor,
        }
        for name, by_factor in groups.items()
        for factor, members in (by_factor or {1.0: []}).items()
    ]


def lr_factors(model: nn.Module, settings: OptimizerSettings) -> dict[str, float]:
    """The learning rate of every parameter, relative to ``lr``.

    Raises ``InputError`` for a name that is no part of the model, or for two of one part.
    """
    setting = "optimizer.lr_params_factors"
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    covered = {name: covered_by(model, setting, name) for name in settings.factors()}
    for name in sorted(covered, key=lambda name: -len(covered[name])):  # the whole, then parts
        same = next(other for other in covered if covered[other] == covered[name])
        if same != name:
            raise InputError(f"{setting}: {same} and {name} are the same part; give one of them")
        factors |= dict.fromkeys(covered[name], settings.factors()[name])
    return factors


def covered_by(model: nn.Module, setting: str, part: str) -> list[str]:
    """The names of the parameters in a part of the model; ``InputError`` if there is none.

    A part is a module, a parameter, or one of ``_SHORT_NAMES``; ``setting`` names it in the error.
    """
    names = [name for name, _ in model.named_parameters()]
    paths = _SHORT_NAMES.get(part, (part,))
    found = [n for n in names if any(n == path or n.startswith(f"{path}.") for path in paths)]
    if not found:
        dotted = [name.split(".") for name in names]
        known = {".".join(of[: n + 1]) for of in dotted for n in range(len(of))}
        hint = did_you_mean(part, sorted(known | set(_SHORT_NAMES)))
        parts = sorted({".".join(of[:2]) for of in dotted})
        raise InputError(
            f"{setting} names {part!r}, which is no part of the model{hint}; its parts are "
            f"{', '.join(parts)}, and the parameters in them"
        )
    return found


def _group_of(name: str) -> str:
    part = name.split(".", 1)[0]
    if part == "interactions":
        decayed = any(suffix in name for suffix in _DECAYED_IN_INTERACTIONS)
        return "interactions_decay" if decayed else "interactions_no_decay"
    if part in ("products", "readouts"):
        return part
    if part == "node_embedding":
        return "embedding"
    if part in ("joint_embedding", "embedding_readout"):
        return "inputs"
    raise AssertionError(f"parameter {name} belongs to no group")


def freeze(model: nn.Module, names: list[str]) -> None:
    """Freeze the parameters that a name covers; ``InputError`` if one covers none, or all do."""
    parameters = dict(model.named_parameters())
    for part in names:
        for name in covered_by(model, "optimizer.freeze", part):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError("optimizer.freeze leaves nothing to train; name fewer parts")


def make_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    name: str | None = None,
    *,
    on_device: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer ``name`` (default: that of the settings) over the parameters that are trained.

    ``on_device`` keeps all state of Adam and AdamW on the weights' device, for a CUDA graph.
    """
    name = name or settings.optimizer
    if name == "lbfgs":
        if any(factor != 1.0 for factor in settings.factors().values()):
            LOGGER.warning(
                "optimizer.lr_params_factors has no effect on L-BFGS, whose step is one for all "
                "weights; optimizer.freeze keeps parts as they are"
            )
        members = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.LBFGS([{"params": members, "lr_factor": 1.0}], lr=1.0, **_LBFGS)
    groups, betas = parameter_groups(model, settings), (settings.beta, settings.beta2)
    if name == "schedulefree":
        return _schedule_free()([g for g in groups if g["params"]], lr=settings.lr, betas=betas)
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options: dict[str, Any] = {"lr": settings.lr, "betas": betas, "amsgrad": settings.amsgrad}
    device = next(model.parameters()).device
    if device.type == "cpu":
        options["fused"] = True  # all weights of a group at once
    if on_device:
        for group in groups:  # in float32, as the fused kernels take it
            group["lr"] = torch.tensor(settings.lr, dtype=torch.float32, device=device)
        options |= {"fused": True, "capturable": True}
    return classes[name](groups, **options)


def _schedule_free() -> Any:
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise InputError(
            "the optimizer schedulefree needs the package of that name; "
            "pip install 'mace-train[schedulefree]'"
        ) from None
    return AdamWScheduleFree


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """True for an optimizer that switches the weights between training and evaluation."""
    return any("train_mode" in group for group in optimizer.param_groups)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, ``lr`` times its ``lr_factor``."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_factor"])
        else:
            group["lr"] = lr * group["lr_factor"]


def evaluation_weights(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, Tensor] | None:
    """The weights to use of a schedule-free optimizer: y + (1 - 1/beta) (z - y); None of others."""
    if not is_schedule_free(optimizer):
        return None
    beta = optimizer.param_groups[0]["betas"][0]
    weights = {}
    for name, value in model.named_parameters():
        z = optimizer.state.get(value, {}).get("z")
        y = value.detach()
        weights[name] = y.clone() if z is None else torch.lerp(y, z, 1 - 1 / beta)
    return weights


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers) by ``PARAMETER.NAME``; a list of tensors has one entry for each."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
            elif isinstance(value, list):
                numbers[f"{name}.{key}"] = {"length": len(value)}
                members = {f"{name}.{key}.{i}": member for i, member in enumerate(value)}
                tensors |= {k: torch.as_tensor(v) for k, v in members.items() if v is not None}
            else:
                numbers[f"{name}.{key}"] = value
    groups = [
        {key: group[key] for key in _GROUP_STATE if key in group}
        for group in optimizer.param_groups
    ]
    return tensors, {"state": numbers, "groups": groups}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: dict[str, Tensor],
    numbers: dict[str, Any],
) -> None:
    """Restore what ``optimizer_state`` gave for an optimizer of the same name."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        counts_on = parameter.device if optimizer.defaults.get("capturable") else None
        state = _state_of(name, tensors, numbers["state"], parameter.device, counts_on)
        if state and any(group.get("amsgrad") for group in optimizer.param_groups):
            state.setdefault("max_exp_avg_sq", state["exp_avg_sq"].clone())  # switched on since
        if state:
            optimizer.state[parameter] = state
    of_groups = list(numbers["groups"])
    for i, group in enumerate(optimizer.param_groups if of_groups else ()):
        group.update(of_groups[min(i, len(of_groups) - 1)])  # more, with rates by layer since


def _state_of(
    name: str,
    tensors: dict[str, Tensor],
    numbers: dict[str, Any],
    device: torch.device,
    counts_on: torch.device | None,
) -> dict[str, Any]:
    """The state of one parameter; Adam counts steps on the CPU, but on ``counts_on`` in a graph."""
    prefix = f"{name}."
    found = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    given = {key.removeprefix(prefix): v for key, v in numbers.items() if key.startswith(prefix)}
    placed = {
        key: v.to((counts_on or "cpu") if key == "step" else device) for key, v in found.items()
    }
    state: dict[str, Any] = {key: v for key, v in placed.items() if "." not in key}
    for key, value in given.items():
        if isinstance(value, dict):
            state[key] = [placed.get(f"{key}.{i}") for i in range(value["length"])]
        else:
            state[key] = value
    return state
