#!/bin/bash
# What wardround does on CUDA, beside its processor, learn2learn and Opacus, and whether a patient stays alone there.
# At most six minutes; writes benchmarks/results/gpu/table.md and results.json.
#
#   benchmarks/gpu.sh [--device cpu] [--small] [--out DIR]
#   benchmarks/gpu.sh collect [3.12]     where there is a network: what a machine without one needs, into .gpu/
#
# It runs from a fresh checkout. A Python whose torch sees the GPU is enough: .venv/bin/python where there is one, or
# what PYTHON names, or python3. What that lacks is installed beside it, in .gpu/venv, from .gpu/wheels or from the
# index; its torch stays. Where learn2learn was not collected, its rows are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly PEER=learn2learn==0.2.0
# What the programs import beside torch and numpy: as pip calls it, and as Python does where that differs.
readonly NEEDED="pydantic pydantic-core:pydantic_core annotated-types:annotated_types
  typing-inspection:typing_inspection typing-extensions:typing_extensions cryptography cffi pycparser opacus hypothesis
  sortedcontainers safetensors scipy rich pygments markdown-it-py:markdown_it mdurl tqdm opt-einsum:opt_einsum pytest
  iniconfig pluggy packaging"

collect() {
  local names=() pair
  for pair in $NEEDED; do names+=("${pair%%:*}"); done
  mkdir -p .gpu/wheels
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${1:-3.12}" -c constraints.txt \
    --dest .gpu/wheels "${names[@]}"
  # pip asks the source itself for its version, which may build for a long time; the file is there before that.
  timeout 60 "$python" -m pip download --quiet --no-deps --no-binary learn2learn --dest .gpu "$PEER" || true
  compgen -G '.gpu/learn2learn-*.tar.gz' >/dev/null ||
    echo "learn2learn cannot be had: put its .tar.gz into .gpu/, or its rows are left out" >&2
  du -sh .gpu
}

lacks() { # what this Python cannot import, by pip's names
  "$1" - $NEEDED <<'PYTHON'
import sys
from importlib.util import find_spec
pairs = (each.partition(":") for each in sys.argv[1:])
print(*(name for name, _, module in pairs if find_spec(module or name) is None))
PYTHON
}

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if [ "${1:-}" = collect ]; then
  shift
  collect "$@"
  exit
fi
missing=$(lacks "$python")
if [ -n "$missing" ]; then
  from=()
  [ -d .gpu/wheels ] && from=(--no-index --find-links .gpu/wheels)
  # The torch that is there comes along by a file of paths: a venv of a venv does not see the first one's packages.
  there=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')
  "$python" -m venv --system-site-packages .gpu/venv
  python=.gpu/venv/bin/python
  echo "$there" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/there.pth"
  # shellcheck disable=SC2086 # names, one a word
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps "${from[@]}" $missing
fi
export PYTHONPATH=.:shared:client:server:simulation:benchmarks FLWR_TELEMETRY_ENABLED=0
exec "$python" benchmarks/gpu.py "$@"
