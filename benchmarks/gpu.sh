#!/usr/bin/env bash
# Everything worth knowing from a machine with a GPU, in one command and at most 8 minutes:
#   bash benchmarks/gpu.sh [OUT]      OUT: folder of the results, by default $OUT or gpu-results
# Needs torch and Triton for CUDA, pytest; nvcc and ninja for the C++ kernels, compute-sanitizer for the
# memory check, transformers for BERT: what is missing is reported and left out. Every step has its own
# limit, so that one hang cannot eat the time of the others; OUT/summary.txt says how each ended.
#   PYTHON=python3.12    interpreter
#   MAX_JOBS=16          parallel compilations
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${1:-${OUT:-gpu-results}}" && cd "${1:-${OUT:-gpu-results}}" && pwd)
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
unset TRITON_INTERPRET
failed=0
: >"$OUT/summary.txt"

say() { printf '%s\n' "$*" | tee -a "$OUT/summary.txt"; }

# step NAME SECONDS COMMAND...: output to OUT/NAME.log, a line and, after a failure, its end to the summary.
step() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  status=$?
  case $status in
    0) say "$name: ok, $((SECONDS - start)) s" ;;
    124 | 137) say "$name: stopped at its limit of $limit s" ;;
    *) say "$name: failed with status $status, $((SECONDS - start)) s" ;;
  esac
  [ $status -eq 0 ] || { failed=1; tail -n 8 "$OUT/$name.log" | tee -a "$OUT/summary.txt"; }
  return $status
}

# shellcheck disable=SC2016
machine='
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
nvcc --version | tail -n 2
$PYTHON - <<END
import sys, torch, triton
print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)
assert torch.cuda.is_available(), "torch sees no CUDA device"
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
END'
export PYTHON
say "bigkernels $(git rev-parse --short HEAD 2>/dev/null || echo '(no git)') on $(date -u +%F)"
if ! step machine 20 bash -c "$machine"; then
  say 'nothing can be measured here'
  exit 1
fi
cat "$OUT/machine.log" >>"$OUT/summary.txt"

step build 130 "$PYTHON" setup.py -q build_native --inplace

# The project's pytest options name plugins that need not be here.
pytest=("$PYTHON" -m pytest -o addopts= -q -m 'not full' -p no:cacheprovider)
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n 8)
step tests 130 "${pytest[@]}" "${workers[@]}" --maxfail=20 -rfEs -k cuda tests/test_layer_norm.py
tail -n 3 "$OUT/tests.log" >>"$OUT/summary.txt"

if command -v compute-sanitizer >/dev/null; then
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step memcheck 50 compute-sanitizer --tool memcheck \
    --error-exitcode 9 "${pytest[@]}" -k 'cuda and every_width and not triton' tests/test_layer_norm.py
else
  say 'memcheck: left out, compute-sanitizer is not on the PATH'
fi

step peers 150 "$PYTHON" benchmarks/gpu_peers.py --seconds 135 --json "$OUT/peers.json"
cat "$OUT/peers.log" >>"$OUT/summary.txt"
say "all steps: $SECONDS s"
exit $failed
