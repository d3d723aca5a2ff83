"""Which implementation of the fused operations runs: asked for by name, or chosen.

reference  PyTorch; every device, differentiable any number of times
cpp        C++ compiled on this machine; CPU tensors, first and second derivatives
"""

import torch

from mace_train.errors import InputError
from mace_train.ops.compiler import NO_COMPILER, find_compiler

NAMES = ("reference", "cpp")


def method_of(name: str, device: torch.device) -> str:
    """The method that ``name`` (auto, or one of NAMES) means for tensors on a device.

    Raises InputError for an unknown name, or one that the device or this machine cannot run.
    """
    if name == "auto":
        return "cpp" if device.type == "cpu" and find_compiler() is not None else "reference"
    if name not in NAMES:
        valid = ", ".join(("auto", *NAMES))
        raise InputError(f"kernels={name!r} is not known; valid choices are: {valid}")
    if name == "cpp" and device.type != "cpu":
        raise InputError(f"kernels=cpp runs on the CPU, not on {device}; use kernels=auto")
    if name == "cpp" and find_compiler() is None:
        raise InputError(NO_COMPILER)
    return name


def announcement(name: str, device: torch.device) -> str:
    """One line that says what runs and why."""
    method = method_of(name, device)
    if name != "auto":
        return f"kernels: {method}, as asked for"
    if method == "cpp":
        return f"kernels: cpp, compiled by {find_compiler()}"
    reason = "there is no working C++ compiler on the PATH"
    if device.type != "cpu":
        reason = f"there are no compiled kernels for {device.type}"
    return f"kernels: reference (PyTorch), because {reason}"
