"""Launch detection from the environments that launchers make."""

import pytest

from mace_train.distributed.launcher import Launch, detect, job_gpus, launched_tasks
from mace_train.errors import InputError

SRUN = {  # task 5 of `srun -N3 --ntasks-per-node=2`, on the third node
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[012-013,020]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "none",
}
PALS = {"PMI_SIZE": "8", "PMI_RANK": "6", "PMI_LOCAL_RANK": "2", "PMI_LOCAL_SIZE": "4"}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
JSRUN = {
    "JSM_NAMESPACE_SIZE": "12",
    "JSM_NAMESPACE_RANK": "7",
    "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_LOCAL_SIZE": "6",
    "LSB_JOBID": "77",
    "LSB_MCPU_HOSTS": "batch5 1 h36n03 42 h36n04 42",
}


def numbers(launch: Launch) -> tuple[int, int, int, int]:
    return launch.rank, launch.size, launch.local_rank, launch.local_size


def test_no_launcher_is_one_process():
    assert detect({}) == Launch()
    assert launched_tasks({}) is None


def test_srun():
    launch = detect(SRUN)
    assert launch.launcher == "srun"
    assert numbers(launch) == (5, 6, 1, 2)
    assert launch.host == "gpu012"
    assert 20000 <= launch.port < 30000
    # all tasks of the step meet at one port, the next step of the job at another
    assert detect(SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).port == launch.port
    assert detect(SRUN | {"SLURM_STEP_ID": "1"}).port != launch.port


def test_srun_with_uneven_nodes():
    uneven = SRUN | {"SLURM_STEP_NUM_TASKS": "9", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}
    uneven["SLURM_LOCALID"] = "0"
    sizes = [detect(uneven | {"SLURM_NODEID": str(node)}).local_size for node in range(3)]
    assert sizes == [4, 4, 1]


def test_srun_with_pmi2_has_the_local_ranks_of_slurm():
    assert numbers(detect(SRUN | {"PMI_SIZE": "6", "PMI_RANK": "5"})) == (5, 6, 1, 2)


def test_torchrun_wins_over_the_srun_that_started_it():
    launch = detect(SRUN | {"SLURM_STEP_NUM_TASKS": "3"} | TORCHRUN)
    assert (launch.launcher, launch.host, launch.port) == ("torchrun", "node1", 29400)
    assert numbers(launch) == (3, 4, 1, 2)


def test_mpiexec_of_each_kind(tmp_path):
    assert numbers(detect(HYDRA)) == (2, 4, 2, 4)
    assert detect(HYDRA).host == "127.0.0.1"  # all on one host
    nodes = tmp_path / "nodes"
    nodes.write_text("x3001\nx3001\nx3002\n")
    pbs = {"PBS_JOBID": "42.server", "PBS_NODEFILE": str(nodes)}
    assert numbers(detect(PALS | pbs)) == (6, 8, 2, 4)
    assert detect(PALS | pbs).host == "x3001"
    assert numbers(detect(OPEN_MPI | {"MASTER_ADDR": "first"})) == (5, 8, 1, 4)
    assert detect(JSRUN).host == "h36n03"  # not the host of the batch script
    assert detect(OPEN_MPI | {"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "a 4 b 4"}).host == "a"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_NTASKS": "8"}, "type `srun mace-train"),  # python in the batch script
        (SRUN | TORCHRUN, "--ntasks-per-node=1 torchrun"),  # one torchrun per GPU
        (OPEN_MPI, "set MASTER_ADDR"),  # several hosts that no scheduler names
        (OPEN_MPI | {"MASTER_ADDR": "localhost"}, "scontrol show hostnames"),
        (SRUN | {"MASTER_ADDR": "127.0.0.1"}, "only finds itself"),
        ({"PMIX_SIZE": "4", "PMIX_RANK": "1"}, "share a host"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LSB_MCPU_HOSTS": "a 4 b 4"}, "the job has 2 hosts"),
        (SRUN | {"SLURM_LOCALID": "one"}, "SLURM_LOCALID='one'"),
    ],
)
def test_a_launch_that_cannot_work_says_what_to_type(environment, words):
    with pytest.raises(InputError, match=words):
        detect(environment)


def test_gpus_that_the_scheduler_gave():
    assert job_gpus({}) is None
    assert job_gpus({"SLURM_GPUS_ON_NODE": "0"}) is None
    assert job_gpus({"SLURM_GPUS_ON_NODE": "4"}) == "SLURM_GPUS_ON_NODE=4"
