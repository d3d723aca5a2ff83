#!/usr/bin/env bash
# Makes an environment, installs mace-train with everything the tests need, and runs the whole suite:
# style, types, import layers, then every test. Needs a fresh machine with Python 3.11 or newer and
# nothing else. Arguments go to pytest: scripts/test.sh -k balance
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=${MACE_TRAIN_VENV:-.venvs/test}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "scripts/test.sh needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
"${PIP[@]}" 'pip>=25'  # resolves much faster than what comes with Python 3.11
"${PIP[@]}" --no-compile -e '.[dev,interop,examples,cuda,torchsim]'
# on all cores, where pip uses one; some packages hold files that are not valid Python
"$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null 2>&1 || true
export PATH="$PWD/$VENV/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# the report's tests open it in a browser; without one those tests are skipped, with the reason
if ! command -v chromium chromium-browser google-chrome >/dev/null &&
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends chromium; } >/dev/null ||
    echo "scripts/test.sh: apt-get cannot install chromium; the report's browser tests are skipped" >&2
fi

unset PYTHONDONTWRITEBYTECODE  # or every process that a test starts compiles the package again

ruff check .
ruff format --check .
mypy
lint-imports
# one more than two cores: tests of ranks, faults and Slurm wait much of their time
python -m pytest -n "${MACE_TRAIN_TEST_PROCESSES:-3}" --dist worksteal "$@"
