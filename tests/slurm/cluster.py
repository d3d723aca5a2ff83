"""A real Slurm on this machine (cluster.sh), and the batch scripts of ``slurm/`` in it."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
_PREFIX = "mace-train-slurm-"
_ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")


def why_not() -> str | None:
    """Why no Slurm can be started here; None if one can."""
    done = subprocess.run([SCRIPT, "check"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stdout.strip()


class Cluster:
    """Nodes node1, node2, ... with 64 CPUs and 4 pretended GPUs each."""

    def __init__(self, n_nodes: int) -> None:
        _stop_orphans()
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        self.root.chmod(0o755)
        (self.root / "owner").write_text(str(os.getpid()))
        subprocess.run([SCRIPT, "start", self.root, str(n_nodes)], check=True)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "PYTEST", "RANK", "WORLD_SIZE"))
        } | {
            "SLURM_CONF": str(self.root / "etc/slurm.conf"),
            "PATH": f"{self.root}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }

    def stop(self) -> None:
        """End all jobs, nodes and services."""
        self.run("scancel", "--user=root")
        subprocess.run([SCRIPT, "stop", self.root], check=True)
        subprocess.run(["rm", "-rf", self.root], check=True)

    @property
    def scratch(self) -> Path:
        """The disk of a node, for jobs."""
        return self.root / "scratch"

    def disk(self, node: int) -> Path:
        """The same disk seen from outside."""
        return self.root / f"disks/node{node}"

    def run(self, *command: object, check: bool = True) -> str:
        """Output of a command of Slurm."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(
        self, script: str, folder: Path, options: list[str], *arguments: object, **variables: str
    ) -> str:
        """Submit ``slurm/script``, edited in its three lines; the job's number."""
        words = [str(argument) for argument in arguments]
        done = subprocess.run(
            ["sbatch", "--parsable", *options, edited(script, folder), *words],
            env=self.environment | variables,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def states(self, job: str) -> list[str]:
        """State of a job, or of every task of an array."""
        return re.findall(r"JobState=(\w+)", self.run("scontrol", "-o", "show", "job", job))

    def wait(self, job: str, timeout_s: float = 120.0) -> list[str]:
        """The states in which a job and all its tasks ended."""
        end = time.monotonic() + timeout_s
        while any(state in _ACTIVE for state in self.states(job)):
            assert time.monotonic() < end, f"job {job}: {self.run('scontrol', 'show', 'job', job)}"
            time.sleep(0.2)
        return self.states(job)

    def restarts(self, job: str) -> int:
        """How often a job went back to the queue."""
        return int(re.findall(r"Restarts=(\d+)", self.run("scontrol", "show", "job", job))[0])

    def pids(self, node: int, words: str) -> list[int]:
        """Processes of a node with ``words`` in their command line, numbered as outside."""
        slurmd = int((self.root / f"run/node{node}.pid").read_text())
        found, left = [], [slurmd]
        while left:
            pid = left.pop()
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if words in command:
                found.append(pid)
        return found

    def cut_power(self, node: int) -> None:
        """Everything on the node is gone at once."""
        subprocess.run([SCRIPT, "power-cut", self.root, str(node)], check=True)

    def boot(self, node: int) -> None:
        """Switch a node on again."""
        subprocess.run([SCRIPT, "boot", self.root, str(node)], check=True)


def _stop_orphans() -> None:
    """Stop clusters whose tests were killed."""
    for owner in Path("/tmp").glob(f"{_PREFIX}*/owner"):
        if not Path(f"/proc/{owner.read_text()}").exists():
            subprocess.run([SCRIPT, "stop", owner.parent])
            subprocess.run(["rm", "-rf", owner.parent], check=True)


def edited(script: str, folder: Path) -> Path:
    """A copy of a batch script as a user would have it: changed in the three marked lines alone."""
    text = (ROOT / "slurm" / script).read_text()
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if "<- EDIT" in line]
    assert [re.search(r"EDIT (\d) of 3", lines[i])[1] for i in places] == ["1", "2", "3"]
    values = ("#SBATCH --account=tests", "#SBATCH --partition=preempt", f"cd {folder}")
    for i, value in zip(places, values, strict=True):
        lines[i] = value
    target = folder / "slurm" / script
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n")
    (target.parent / "common.sh").write_text((ROOT / "slurm/common.sh").read_text())
    return target


def log_of(folder: Path, name: str) -> str:
    """Text of a log; nothing before there is one."""
    path = folder / name
    return path.read_text() if path.is_file() else ""
