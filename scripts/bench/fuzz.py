"""Randomly damaged shards and input files: each is refused with a message, or read as it was.

    python scripts/bench/fuzz.py [--cases 2000] [--seed 0]

Shards of every kind of storage and files of four formats get flipped bits, cut ends, zeroed,
doubled and exchanged parts (tests/data/fuzzing.py). Exit code 1 if anything crashes, raises
another error than InputError, or reads a damaged shard as something else. A damaged text file can
be a valid file that says something else; what ASE reads from it is then the truth.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.data.fuzzing import run_guarded


def main() -> int:
    """Run the cases and print how they ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = run_guarded(0, arguments.cases, arguments.seed)
    kinds: dict[str, Counter[str]] = {}
    for (kind, result), count in sorted(counts.items()):
        kinds.setdefault(kind, Counter())[result] += count
    for kind, outcomes in kinds.items():
        print(f"{kind}: {', '.join(f'{name} {n}' for name, n in outcomes.items())}")
    total: Counter[str] = sum(kinds.values(), Counter())
    print(f"all: {', '.join(f'{name} {n}' for name, n in total.most_common())}")
    return 0 if set(total) <= {"refused", "same"} else 1


if __name__ == "__main__":
    sys.exit(main())
