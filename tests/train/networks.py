"""Networks with chosen parameter names."""

import torch
from torch import nn


class Named(nn.Module):
    """Parameters named as in MACE."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_parameter(leaf, nn.Parameter(torch.zeros(1)))
