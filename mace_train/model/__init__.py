"""MACE in PyTorch: couplings, layers, the model, its derivatives and mace-torch interchange."""
