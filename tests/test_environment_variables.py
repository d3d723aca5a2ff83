"""Environment variables are read in one module, and what is read there is checked."""

import ast
import os
from pathlib import Path

import pytest

import mace_train
from mace_train import environment_variables as variables
from mace_train.errors import InputError

PACKAGE = Path(mace_train.__file__).parent
# file -> why it uses os.environ itself
EXCEPTIONS = {
    "interrupts.py": "runs before any import; asks only whether this is a rank, and which",
    "environment_variables.py": "the one module that reads them",
    "irreps.py": "sets a variable of PyTorch for an import, and restores it",
}
READERS = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def uses_environment(path: Path) -> bool:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names |= {name.name for name in node.names}
    return bool(names & READERS)


def test_no_other_module_reads_the_environment():
    found = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if uses_environment(p)}
    assert found == EXCEPTIONS.keys()


def test_a_variable_that_is_not_set_is_none():
    assert variables.number("RANK", {}) is None
    assert variables.threads({}) is None
    assert variables.text("NETRC", {}) is None
    assert variables.host("MASTER_ADDR", {}) is None
    assert variables.job({}) is None
    assert variables.counts_of_nodes("SLURM_STEP_TASKS_PER_NODE", {}) is None
    assert variables.first_of_nodes("SLURM_JOB_NODELIST", {}) is None
    assert variables.hosts_of_file("PBS_NODEFILE", {}) is None
    assert variables.hosts_and_slots("LSB_MCPU_HOSTS", {}) is None
    assert variables.folder("XDG_CACHE_HOME", {}) is None
    assert variables.job_token({}) == b""


def test_numbers():
    assert variables.number("RANK", {"RANK": "0"}) == 0
    assert variables.number("RANK", {"RANK": " 007 "}) == 7
    assert variables.number("MASTER_PORT", {"MASTER_PORT": "65535"}) == 65535
    assert variables.threads({"OMP_NUM_THREADS": "4,2"}) == 4


@pytest.mark.parametrize("value", ["", " ", "+1", "-1", "1.0", "1e3", "0x1", "1_0", "²", "٣", "१"])
def test_what_is_no_number(value):
    with pytest.raises(InputError, match=r"MASTER_PORT=.* is not a number from 1 to 65535; set it"):
        variables.number("MASTER_PORT", {"MASTER_PORT": value})


def test_a_long_value_is_shown_in_part():
    with pytest.raises(InputError) as error:
        variables.number("RANK", {"RANK": "9" * 10_000})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[07-12]", "node07"),
        ("node[3,5-9],big1", "node3"),
        ("a1,b[2-3]", "a1"),
        ("rack[2-3]n[05-08],x", "rack2n05"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert variables.first_of_nodes("NODES", {"NODES": nodes}) == first


def test_tasks_per_node():
    name = "SLURM_STEP_TASKS_PER_NODE"
    assert variables.counts_of_nodes(name, {name: "4(x2),1"}) == [(4, 2), (1, 1)]


@pytest.mark.parametrize("name", ["node7", "10.0.0.1", "::1", "fe80::1%eth0", "a-b.c_d.e"])
def test_names_and_addresses_of_hosts(name):
    assert variables.host("MASTER_ADDR", {"MASTER_ADDR": name}) == name


def test_text_that_cannot_be_printed():
    for value in ("", "a\nb", "\x1b[2J", b"\xff".decode(errors="surrogateescape")):
        with pytest.raises(InputError, match=r"MACE_TRAIN_LOG=.* control characters; correct or"):
            variables.text("MACE_TRAIN_LOG", {"MACE_TRAIN_LOG": value})


def test_a_token_is_never_shown():
    assert variables.job_token({variables.JOB_TOKEN: "a1" * 16}) == b"a1" * 16
    for value in ("", "geheim", "geheim" * 100, "geheim geheim geheim", "geheimgeheimgehé"):
        with pytest.raises(InputError, match=f"{variables.JOB_TOKEN} .*16 to 256") as error:
            variables.job_token({variables.JOB_TOKEN: value})
        assert "geheim" not in str(error.value)


def test_the_home_of_a_user(monkeypatch, tmp_path):
    assert variables.home({"HOME": str(tmp_path)}) == tmp_path
    assert variables.home({}).is_absolute()
    assert variables.home({"HOME": ""}) == variables.home({})
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(InputError, match="user 4000000 has no home folder; set HOME"):
        variables.home({})
    with pytest.raises(InputError, match="HOME='here' in the environment is not an absolute path"):
        variables.home({"HOME": "here"})
