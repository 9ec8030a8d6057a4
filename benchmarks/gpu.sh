#!/usr/bin/env bash
# Everything worth knowing from a machine with a GPU, in one command of two parts, each under 10 minutes:
#   bash benchmarks/gpu.sh [--part 1|2] [--rehearse] [--list] [OUT]
# Part 1 proves: build, smoke, conformance of the emulator, tests, compute-sanitizer, planted faults.
# Part 2 times our kernels and their peers. Without --part both run, one after the other.
# --rehearse runs the same steps on the emulated device of tests/emulator, with small shapes, on any
# machine: it says that the steps work, nothing about speed.
# --list only names the files of tests.
# OUT: folder of the results, by default $OUT or gpu-results: summary.txt, a log for each part, and JSON.
# Needs torch and Triton for CUDA, pytest; nvcc and ninja for the C++ kernels, compute-sanitizer for its
# checks, transformers for BERT: what is missing is reported and left out. Every step has its own limit,
# so that one hang cannot eat the time of the others; the summary, shown last, says how each ended.
#   PYTHON=python3.12    interpreter
#   MAX_JOBS=16          parallel compilations
set -uo pipefail
cd "$(dirname "$0")/.."
parts='1 2' device=cuda list=no
while [[ ${1:-} == --* ]]; do
  case $1 in
    --part)
      parts=${2:-}
      [[ $parts == [12] ]] || { printf -- '--part: %s is not 1 or 2\n' "${parts:-nothing}" >&2 && exit 2; }
      shift
      ;;
    --rehearse) device=emulated ;;
    --list) list=yes ;;
    *) printf 'unknown option %s\n' "$1" >&2 && exit 2 ;;
  esac
  shift
done
# Those of every room with a drawer for GPUs, and of a drawer's own where it has some.
mapfile -t rooms < <(for drawer in bigkernels/ops/*/{cuda,triton}.py; do
  room=$(basename "$(dirname "$drawer")")
  ls "tests/test_$room.py" "tests/test_${room}_$(basename "$drawer")" 2>/dev/null
done | sort -u)
rooms+=(tests/test_graphs.py)
if [ $list = yes ]; then
  printf '%s\n' "${rooms[@]}"
  exit
fi
OUT=$(mkdir -p "${1:-${OUT:-gpu-results}}" && cd "${1:-${OUT:-gpu-results}}" && pwd)
PYTHON=${PYTHON:-python3}
export PYTHON PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
unset TRITON_INTERPRET
failed=0 log=$OUT/part1.log
: >"$OUT/summary.txt"

say() { printf '%s\n' "$*" | tee -a "$OUT/summary.txt"; }

# step NAME SECONDS COMMAND...: output to the part's log; a line, and after a failure its end, to the summary.
step() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  [ $device = emulated ] && limit=$((2 * limit)) # a rehearsal may share its machine with others
  printf '\n== %s\n' "$name" >>"$log"
  timeout -k 5 "$limit" "$@" >"$log.step" 2>&1
  status=$?
  cat "$log.step" >>"$log"
  case $status in
    0) say "$name: ok, $((SECONDS - start)) s" ;;
    124 | 137) say "$name: stopped at its limit of $limit s" ;;
    *) say "$name: failed with status $status, $((SECONDS - start)) s" ;;
  esac
  [ $status -eq 0 ] || { failed=1; tail -n 8 "$log.step" | tee -a "$OUT/summary.txt"; }
  return $status
}
quote() { tail -n "$1" "$log.step" >>"$OUT/summary.txt"; }

# shellcheck disable=SC2016
machine='
if [ "$1" = cuda ]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || exit
fi
command -v nvcc >/dev/null && nvcc --version | tail -n 2
"$PYTHON" - "$1" <<END
import importlib.util, sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__)
if importlib.util.find_spec("triton"):
    import triton
    print("triton", triton.__version__)
if sys.argv[1] == "cuda":
    assert torch.cuda.is_available(), "torch sees no CUDA device"
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
END'

# The project's pytest options name plugins that need not be here.
pytest=("$PYTHON" -m pytest -o addopts= -q -m 'not full' -p no:cacheprovider --maxfail=20)
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n "$((MAX_JOBS < 8 ? MAX_JOBS : 8))")
# Which tests: of a rehearsal a few, because an emulated kernel takes a thousand times as long.
# For compute-sanitizer: all of the C++ kernels, of each room's Triton kernels a small call of either direction.
small='either_result or 3x2x20x70x64-lengths or 3x2x9x20x32-mask_float-mask_values_infinite or what_is_dropped'
small+=' or packed_tokens_equal or (ignored_rows and bf16) or gradients_go_to_tokens'
all=cuda some="cuda and every_width and not triton or cuda-triton and ($small)"
if [ $device = emulated ]; then
  all='emulated and (address or strides or neighbours) and f32'
  some="emulated and every_width and f32 or triton and emulated and ($small)"
fi

prove() {
  step smoke 40 "${pytest[@]}" -k "$device and dense" "${rooms[@]}"
  step conformance 50 "$PYTHON" -m tests.conformance --device $device --json "$OUT/conformance.json"
  quote 12
  step tests 90 "${pytest[@]}" "${workers[@]}" -rfEs -k "$all" "${rooms[@]}"
  quote 3
  if [ $device = emulated ]; then
    step checks 40 "${pytest[@]}" -k "$some" "${rooms[@]}"
  elif command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 step $tool 40 compute-sanitizer --tool $tool \
        --error-exitcode 9 "${pytest[@]}" -k "$some" "${rooms[@]}"
    done
  else
    say 'memcheck, racecheck, synccheck, initcheck: left out, compute-sanitizer is not on the PATH'
  fi
  step planted 55 "$PYTHON" -m tests.conformance.faults --device $device
  quote 12
}

time_peers() {
  local sizes=()
  [ $device = emulated ] && sizes=(--smoke --no-compile)
  step peers 290 "$PYTHON" benchmarks/gpu_peers.py --device $device "${sizes[@]}" --seconds 275 \
    --json "$OUT/peers.json"
  cat "$log.step" >>"$OUT/summary.txt"
  step targets 15 "$PYTHON" benchmarks/gpu_targets.py "$OUT/peers.json"
  quote 40
  local how=(--seconds 120)
  [ $device = emulated ] && how=(--rehearse --seconds 40)
  step tune 140 "$PYTHON" benchmarks/tune.py "${how[@]}" --write "$OUT/tiles.json"
  quote 20
}

say "bigkernels $(git rev-parse --short HEAD 2>/dev/null || echo '(no git)') on $(date -u +%F)"
[ $device = emulated ] && say 'rehearsal on the emulated device: its times say nothing about a GPU'
for part in $parts; do
  log=$OUT/part$part.log start=$SECONDS
  : >"$log"
  if ! step machine 20 bash -c "$machine" machine $device; then
    say 'nothing can be measured here'
    failed=1
    break
  fi
  quote 5
  step build 130 "$PYTHON" setup.py -q build_native --inplace
  case $part in
    1) prove ;;
    2) time_peers ;;
  esac
  say "part $part: $((SECONDS - start)) s"
done
rm -f "$OUT"/*.step
printf '\n'
cat "$OUT/summary.txt"
exit $failed
