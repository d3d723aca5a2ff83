"""What a CUDA kernel is made for, and how it is launched."""

import json
from dataclasses import asdict, dataclass

LANES = 32


@dataclass(frozen=True)
class CudaTarget:
    """Precision, and channels of the tensors."""

    scalar: str  # float or double
    n_channels: int

    @property
    def n_bytes(self) -> int:
        """Bytes of a number."""
        return 4 if self.scalar == "float" else 8


@dataclass(frozen=True)
class LaunchConfig:
    """Threads of a block and of an item of the loop, and blocks in the second dimension."""

    threads: int
    threads_per_item: int
    passes: int
    indices: int = 3  # tensors that come before the inputs

    def grid(self, n_items: int) -> tuple[int, int, int]:
        """Blocks for so many chunks or receivers."""
        return -(-n_items * self.threads_per_item // self.threads), self.passes, 1

    def header(self) -> str:
        """The first line of a source."""
        return f"// launch: {json.dumps(asdict(self))}\n"

    @classmethod
    def of(cls, source: str) -> "LaunchConfig":
        """What the first line of a source says."""
        return cls(**json.loads(source.split("\n", 1)[0].removeprefix("// launch: ")))


def block_of(n_channels: int, at_most: int = 128) -> tuple[int, int]:
    """Threads of a block, and blocks for the channels of one receiver: few lanes are idle."""
    n_blocks = -(-n_channels // at_most)
    per_block = -(-n_channels // n_blocks)
    return -(-per_block // LANES) * LANES, n_blocks
