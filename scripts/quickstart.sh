#!/usr/bin/env bash
# Raw files to an evaluated model in minutes on two CPU cores: makes an environment, installs
# mace-train, then preprocesses, balances, trains and evaluates on the embedded example data.
# Needs a fresh machine with Python 3.11 or newer and nothing else.
#
#   scripts/quickstart.sh [FOLDER]      results go to FOLDER (default: quickstart)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=${MACE_TRAIN_VENV:-.venvs/quickstart}
OUT=${1:-quickstart}
RANKS=${MACE_TRAIN_RANKS:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ -e "$OUT" ]; then
  echo "quickstart: $OUT exists; remove it or name another folder: scripts/quickstart.sh FOLDER" >&2
  exit 2
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "quickstart needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }

echo "== install into $VENV"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
"${PIP[@]}" 'pip>=25'  # resolves much faster than what comes with Python 3.11
"${PIP[@]}" --no-compile -e .
# on all cores, where pip uses one; some packages hold files that are not valid Python
"$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null 2>&1 || true
export PATH="$PWD/$VENV/bin:$PATH"

echo "== preprocess: structures -> HDF5 shards with neighbour lists"
mace-train preprocess data=example r_max=4.5 output="$OUT/data"

echo "== balance: how evenly would 8 GPUs be loaded?"
mace-train balance data_dir="$OUT/data" gpus=8 output="$OUT/balance"

echo "== train: $RANKS processes on this machine"
torchrun --standalone --nproc-per-node "$RANKS" -m mace_train train \
  data_dir="$OUT/data" output="$OUT/run" model=tiny loss=stress loss.energy_weight=10 \
  scheduler=cosine batching.batch_size=4 max_num_epochs=30 cluster=cpu

echo "== evaluate: the test structures, which training has not seen"
mace-train evaluate checkpoint="$OUT/run" data_dir="$OUT/data" split=test output="$OUT/test"

echo "== plots"
python scripts/plot_quickstart.py "$OUT" "$OUT/quickstart.png"
ls "$OUT"/quickstart.png "$OUT"/balance/*.png "$OUT"/test/*.png
