"""Mutated inputs for every command: each must be refused with one message, or accepted.

    python scripts/fuzz.py --inputs 5000 --seed 0 --json fuzz.json

Settings, command lines, environment variables, extxyz, YAML and JSON files, checkpoints and shards
(tests/fuzz). Failures are tracebacks, exit codes other than 0 and 2, death by a signal, more than
10 s, a value accepted outside its declared range, temporary files that remain, and messages of more
than 6 lines or without a remedy. Exit code 1 if there is one. For releases; Linux only.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Run the campaign and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="run the input of this number and show its end")
    parser.add_argument("--again", type=Path, help="run the inputs that failed in this --json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--processes", type=float, default=0.03, metavar="SHARE",
                        help="share of the inputs that get a process of their own")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write counts and failures here")
    parser.add_argument("--fixtures", type=Path,
                        help="undamaged files: made here, or used from here")  # fmt: skip
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), MPLBACKEND="agg")
    from tests.fuzz.campaign import Campaign, failures, table, write
    from tests.fuzz.fixtures import Fixtures, make

    with tempfile.TemporaryDirectory(prefix="mace-train-fuzz-") as folder:
        place = (arguments.fixtures or Path(folder, "fixtures")).resolve()
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        warnings.simplefilter("ignore")
        if not (place / "complete").exists():
            print("making the fixtures", flush=True)
            make(place)
            (place / "complete").touch()
        fixtures = Fixtures(place)
        campaign = Campaign(fixtures, Path(folder), arguments.seed, arguments.processes)
        numbers = list(range(arguments.first, arguments.first + arguments.inputs))
        if arguments.only is not None:
            numbers = [arguments.only]
        if arguments.again is not None:
            numbers = [f["number"] for f in json.loads(arguments.again.read_text())["failures"]]
        gc.freeze()  # children leave the pages of what is imported alone
        start, done, failed = time.monotonic(), 0, 0

        def report(record) -> None:
            nonlocal done, failed
            done += 1
            if record.outcome.isupper():
                failed += 1
                words = f"{record.outcome}: {record.what}: {record.says[:300]}"
                print(f"{record.number}: {words}", flush=True)
            if done % 100 == 0:
                seconds = time.monotonic() - start
                print(f"-- {done}/{len(numbers)}, {failed} failures, {seconds:.0f} s", flush=True)
            if arguments.only is not None:
                print(record.words, record.environment, record.code, record.err, sep="\n")

        records = campaign.run(numbers, arguments.jobs, report)
    print(table(records))
    if arguments.json:
        write(arguments.json, records, arguments.seed)
    return 1 if failures(records) else 0


if __name__ == "__main__":
    sys.exit(main())
