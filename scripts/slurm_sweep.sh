#!/usr/bin/env bash
# A sweep of 8 trainings on the embedded example data through hydra-submitit-launcher, on a real Slurm
# that is started on this machine for it; prints the table and writes scripts/results/sweep.png.
# Needs root, apt-get install slurm-wlm munge iproute2, and mace-train[sweeps] in the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=$(mktemp -d /tmp/mace-train-sweep-XXXX)
chmod 755 "$WORK"
tests/slurm/cluster.sh start "$WORK/cluster" 4
trap 'tests/slurm/cluster.sh stop "$WORK/cluster"; rm -rf "$WORK"' EXIT
# shellcheck source=/dev/null
source "$WORK/cluster/env.sh"
export PYTHONPATH=$PWD OMP_NUM_THREADS=1

python -m mace_train preprocess data=example r_max=4.0 output="$WORK/prepared"
python -m mace_train train --multirun hydra/launcher=submitit_slurm hydra.launcher.timeout_min=30 \
  hydra.launcher.array_parallelism=2 hydra.launcher.cpus_per_task=1 cluster=cpu model=tiny \
  data_dir="$WORK/prepared" output="$WORK/sweep" max_num_epochs=4 \
  optimizer.lr=0.003,0.01 batching.batch_size=2,8 seed=1,2
python -m mace_train sweep "$WORK/sweep" by=valid_forces_rmse_eV_per_A
cp "$WORK/sweep/sweep.png" scripts/results/sweep.png
