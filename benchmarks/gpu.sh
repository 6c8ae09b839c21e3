#!/usr/bin/env bash
# One call for an accelerator, in under ten minutes: check that every backend there agrees with the dense one, then time
# whole models, and backends and peers. Needs jax, flax, optax, numpy and matplotlib, and for whole models jaxtyping; torch,
# transformers and tokamax join as peers where they are installed. What a machine without a network lacks may come along:
#   pip install --no-deps --target .gpu-packages jaxtyping wadler_lindig
#
#   bash benchmarks/gpu.sh                 results go to $OUT, by default benchmarks/results
#   SMALL=1 bash benchmarks/gpu.sh         the same steps at a size for a small CPU, in two or three minutes
#
# A step that fails does not stop the next. Exit status: of the first that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
small=${SMALL:-}
export PYTHONUNBUFFERED=1
if [ -d .gpu-packages ]; then export PYTHONPATH=$PWD/.gpu-packages${PYTHONPATH:+:$PYTHONPATH}; fi
mkdir -p "$out"

echo "== correctness"
timeout 150 "$python" benchmarks/check.py --out "$out" --deadline-seconds 110 \
  ${small:+--cases packed relative --dtypes float32}
checked=$?

echo "== models"
suite=gpu
[ -n "$small" ] && suite=small
timeout 210 "$python" benchmarks/models.py --suite "$suite" --out "$out" --deadline-seconds 150 \
  ${small:+--no-compile --together}
models=$?

echo "== attention"
# A kernel may end the process, or never end: then the rest runs without it, within the time that is left.
seconds=220
if [ -n "$small" ]; then seconds=120; fi
end=$((SECONDS + seconds)) resume=() timed=1
for _ in 1 2 3 4; do
  [ "$timed" -eq 0 ] || [ $((end - SECONDS)) -lt 10 ] && break
  timeout $((end - SECONDS + 30)) "$python" benchmarks/attention.py --suite "$suite" --out "$out" \
    --deadline-seconds $((end - SECONDS)) "${resume[@]}"
  timed=$?
  resume=(--resume)
done

[ "$checked" -ne 0 ] && exit "$checked"
[ "$models" -ne 0 ] && exit "$models"
exit "$timed"
