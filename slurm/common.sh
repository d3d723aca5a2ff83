# shellcheck shell=bash
# What the batch scripts of this folder share. Values in ${NAME:-value} are defaults: a variable of
# that name in the environment of sbatch wins.
set -uo pipefail

# ---- CPUs
# srun no longer takes --cpus-per-task from sbatch (Slurm 22.05 and newer); without this line every
# task would be bound to a single CPU.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Each task keeps to its own cores, close to each other, instead of wandering over the node.
# (--hint, which some sites use against hyperthreads, excludes a binding by hand.)
[[ -n ${SLURM_HINT:-} ]] || export SLURM_CPU_BIND=${SLURM_CPU_BIND:-cores}
# As many threads as cores for each task; more would compete for them.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

# ---- GPUs and network
# NCCL says what went wrong, and nothing else. INFO shows which network it chose.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Batches of structures differ in size; segments that grow lose less memory to fragments.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Shards are only read in training: no locks, which many parallel file systems do not have.
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE}
# Hundreds of ranks that die must not write hundreds of core files.
ulimit -c 0
# What the ranks of this job show each other when they meet, so that no others join by mistake.
MACE_TRAIN_JOB_TOKEN=${MACE_TRAIN_JOB_TOKEN:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
export MACE_TRAIN_JOB_TOKEN
# NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME: only where ranks cannot find each other, see README.md.

# ---- the node's own disk
# Shards are copied there once per node (SLURM_TMPDIR is set by some sites; LOCAL_SCRATCH=/tmp sbatch
# ... asks for it anywhere). Expands to a setting of mace-train, or to nothing.
LOCAL_SCRATCH=${LOCAL_SCRATCH:-${SLURM_TMPDIR:-}}
STAGE=${LOCAL_SCRATCH:+cluster.stage_to=$LOCAL_SCRATCH}

# ---- names
# SLURM_JOB_ID of one task of an array is the number of the whole array: requeue ARRAY_TASK instead.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
# The log of this job, for the records of a sweep
if MACE_TRAIN_LOG=$(readlink "/proc/$$/fd/1"); then export MACE_TRAIN_LOG; else unset MACE_TRAIN_LOG; fi

# ---- faults
# Attempts in a row that may fail within ten minutes before the job gives up.
MAX_FAILURES=${MAX_FAILURES:-3}

say() { echo "$(date +%FT%T) [$SLURM_JOB_NAME $JOB, start $((${SLURM_RESTART_COUNT:-0} + 1))] $*"; }

# setting NAME DEFAULT ARGUMENTS...: the value of NAME=value among the arguments
setting() {
  local name=$1 value=$2
  shift 2
  for word in "$@"; do [[ $word == "$name="* ]] && value=${word#*=}; done
  echo "$value"
}

# run COMMAND...: start it on all tasks; again after a fault; back to the queue when it was asked to
# stop. Exit codes of mace-train: 0 done, 2 bad input, 69 a rank was
# lost, 74 the disk is full or fails, 75 stopped with everything saved.
run() {
  local failures=0 began code
  say "$SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST), $SLURM_NTASKS tasks: $*"
  while :; do
    began=$SECONDS
    # --wait: where one rank has died, the others get a minute to end by themselves; all ranks leave
    # a run that ends well together. --kill-on-bad-exit=0: code 75 of one must not kill the others.
    srun --kill-on-bad-exit=0 --wait=60 ${SRUN_OPTIONS:-} "$@"
    code=$?
    case $code in
    0) return 0 ;;
    2) say "bad input, see above" && exit 2 ;;
    75) say "stopped with everything saved" && back_to_queue ;;
    esac
    ((SECONDS - began > 600)) && failures=0
    ((++failures >= MAX_FAILURES)) && say "code $code, $failures failures in a row: giving up" && exit $code
    say "code $code: looking at the nodes"
    nodes_answer || back_to_queue
    say "starting again"
  done
}

# Slurm notices a lost node after its SlurmdTimeout (5 minutes by default) and then requeues the job by
# itself; until then a training that starts again would only fail again.
nodes_answer() {
  for _ in {1..20}; do
    timeout 60 srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true && return 0
    say "a node does not answer"
    sleep 15
  done
  return 1
}

# The job goes back to the queue with its number and continues when it is its turn; where a site does
# not allow this, it ends, and the next job of a chain continues.
back_to_queue() {
  say "back to the queue"
  scontrol requeue "$JOB" && sleep 600 # Slurm ends the job meanwhile
  exit 75
}
