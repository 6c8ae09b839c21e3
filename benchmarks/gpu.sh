#!/usr/bin/env bash
# One call for an accelerator: check that every backend there agrees with the dense one, then time them, in under ten
# minutes. Needs jax, numpy and matplotlib, flax and optax for the rest of zoo, and torch as a peer where present.
#
#   bash benchmarks/gpu.sh                 results go to $OUT, by default benchmarks/results
#   SMALL=1 bash benchmarks/gpu.sh         the same steps at a size for a small CPU
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out"

echo "== correctness"
"$python" benchmarks/check.py ${SMALL:+--cases causal packed relative} --out "$out"

echo "== attention"
if [ -n "${SMALL:-}" ]; then
  "$python" benchmarks/attention.py --lengths 64 256 --cases causal packed --dtypes float32 --tokens 256 --heads 2 \
    --repeats 3 --out "$out"
else
  "$python" benchmarks/attention.py --lengths 1024 4096 16384 --cases causal full window packed relative \
    --dtypes bfloat16 --tokens 16384 --heads 16 --head-size 128 --backends auto blockwise --out "$out"
fi
