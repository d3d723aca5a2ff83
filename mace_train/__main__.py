"""``python -m mace_train`` and ``torchrun -m mace_train`` are the command ``mace-train``."""

from mace_train.cli import main

if __name__ == "__main__":
    main()
