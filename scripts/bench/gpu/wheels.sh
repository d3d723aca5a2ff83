#!/usr/bin/env bash
# Wheels for a machine with a GPU and without a network, on which PyTorch, pytest, numba, scipy and
# the CUDA packages of the extra "cuda" are installed: what mace-train, its tests marked gpu and the
# packages that the benchmarks compare with need besides.
#
#     scripts/bench/gpu/wheels.sh FOLDER [PYTHON_VERSION]        for Python 3.12 unless given
#
#     FOLDER/*.whl                   mace-train's needs, mace-torch, e3nn, cuEquivariance
#     FOLDER/openequivariance/*.whl  compiles its extension where it is imported; see campaign.py
#     FOLDER/spare/*.whl             cuda-core and cuda-bindings, should those of the machine be too old
#
# There, with no network:
#
#     pip install --no-index --no-deps --target SITE FOLDER/*.whl
#     pip install --no-index --no-deps --target OEQ FOLDER/openequivariance/*.whl
#     PYTHONPATH=SITE python scripts/bench/gpu/campaign.py --folder OUT --openequivariance OEQ
#
# Large wheels are packed again with LZMA, which pip reads as well: less than half of the size.
# Needs pip and Python of that version (PYTHON=python3.12) here, as some wheels are built.
set -euo pipefail

most_mib=60
if [ $# -lt 1 ]; then
  echo "usage: wheels.sh FOLDER [PYTHON_VERSION]" >&2
  exit 2
fi
folder=$1
version=${2:-3.12}
python=${PYTHON:-python$version}
mkdir -p "$folder" "$folder/openequivariance" "$folder/spare"

# Of mace-train's dependencies mpi4py, ortools and wandb are not needed: they are imported only where
# they are used, which no measurement does.
needs=(ase hydra-core "omegaconf>=2.3,<2.4" backports.zstd vesin)
mace=("mace-torch==0.3.16" "e3nn==0.4.4" matscipy configargparse GitPython gitdb smmap lmdb orjson
  prettytable wcwidth torch-ema)
cuequivariance=("cuequivariance==0.13.0" "cuequivariance-torch==0.13.0"
  "cuequivariance-ops-cu13==0.13.0" "cuequivariance-ops-torch-cu13==0.13.0" platformdirs)
spare=(cuda-core cuda-bindings cuda-pathfinder)
pure=("antlr4-python3-runtime==4.9.3" python-hostlist)  # published as sources only

platforms=()
for name in manylinux_2_{17,24,27,28,31,34,35,39}_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
  platforms+=(--platform "$name")
done

download() { # FOLDER NAME...
  local into=$1
  shift
  for name in "$@"; do
    "$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
      --python-version "$version" "${platforms[@]}" -d "$into" "$name"
  done
}

download "$folder" "${needs[@]}" "${mace[@]}" "${cuequivariance[@]}"
download "$folder/spare" "${spare[@]}"
"$python" -m pip wheel -q --no-deps -w "$folder" "${pure[@]}"
# Without libtorch and a CUDA toolkit here: its own loader then compiles what it needs on the machine.
nothing=$(mktemp -d)
trap 'rm -r "$nothing"' EXIT
"$python" -m pip wheel -q --no-deps -w "$folder/openequivariance" "openequivariance==0.7.0" \
  --config-settings=cmake.define.FETCHCONTENT_SOURCE_DIR_LIBTORCH="$nothing" \
  --config-settings=cmake.define.CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON

"$python" - "$folder" "$most_mib" <<'EOF'
import re
import sys
import zipfile
from pathlib import Path

folder, most = Path(sys.argv[1]), float(sys.argv[2])
for path in folder.glob("*.whl"):
    if path.stat().st_size < 10 * 2**20:
        continue
    packed = path.with_suffix(".new")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
        for item in old.infolist():
            kept = zipfile.ZipInfo(item.filename, item.date_time)
            kept.external_attr, kept.compress_type = item.external_attr, zipfile.ZIP_LZMA
            new.writestr(kept, old.read(item))
    packed.replace(path)

def name_of(requirement):
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-").replace(".", "-")

carried, needed, total = set(), {}, 0
for path in sorted(folder.rglob("*.whl")):
    size = path.stat().st_size
    total += size
    print(f"{size / 2**20:7.2f} MiB  {path.relative_to(folder)}")
    if path.parent != folder:
        continue
    carried.add(name_of(path.name.split("-")[0]))
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        for line in wheel.read(names[0]).decode().splitlines():
            if line.startswith("Requires-Dist:") and "extra ==" not in line:
                needed.setdefault(name_of(line.split(":", 1)[1].strip()), path.name.split("-")[0])
print(f"{total / 2**20:7.2f} MiB in all, of at most {most:.0f}")
missing = sorted(set(needed) - carried)
print("must be on the machine:", ", ".join(missing))
twice = len([p for p in folder.glob("*.whl")]) - len(carried)
if twice:
    sys.exit(f"{folder}: {twice} packages in two versions; empty the folder and run again")
if total > most * 2**20:
    sys.exit(f"{total / 2**20:.1f} MiB are more than {most:.0f}; do without FOLDER/spare")
EOF
