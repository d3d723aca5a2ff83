"""The training loop and its parts: loss, optimizer, metrics, checkpoints, logging."""
