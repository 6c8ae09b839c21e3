#!/usr/bin/env bash
# One call for an accelerator, in under ten minutes: check that every backend there agrees with the dense one, then time
# backends and peers. Needs jax, flax, numpy and matplotlib; torch and tokamax join as peers where they are installed.
#
#   bash benchmarks/gpu.sh                 results go to $OUT, by default benchmarks/results
#   SMALL=1 bash benchmarks/gpu.sh         the same steps at a size for a small CPU, in about a minute
#
# A step that fails does not stop the next. Exit status: that of the check, else that of the timing.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
small=${SMALL:-}
export PYTHONUNBUFFERED=1
mkdir -p "$out"

echo "== correctness"
timeout 170 "$python" benchmarks/check.py --out "$out" --deadline-seconds 120 \
  ${small:+--cases packed relative --dtypes float32}
checked=$?

echo "== attention"
# A kernel may end the process, or never end: then the rest runs without it, within the time that is left.
suite=gpu seconds=380
if [ -n "$small" ]; then suite=small seconds=120; fi
end=$((SECONDS + seconds)) resume=() timed=1
for _ in 1 2 3 4; do
  [ "$timed" -eq 0 ] || [ $((end - SECONDS)) -lt 10 ] && break
  timeout $((end - SECONDS + 30)) "$python" benchmarks/attention.py --suite "$suite" --out "$out" \
    --deadline-seconds $((end - SECONDS)) "${resume[@]}"
  timed=$?
  resume=(--resume)
done

[ "$checked" -ne 0 ] && exit "$checked"
exit "$timed"
