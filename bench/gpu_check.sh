#!/usr/bin/env bash
# Everything that wants a GPU, from the checkout: no install, no network, under ten minutes. Writes into DIR:
# gates.json, tests.xml, benchmarks.json and the log.    bench/gpu_check.sh [DIR]    (default runs/gpu)
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET
python=${PYTHON:-python3}
$python -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo "gpu_check: $python sees no CUDA device (PYTHON=... chooses another)" >&2
    exit 1
}
mkdir -p "$out"
$python -c 'import xdist' 2>/dev/null && parallel="-n 8"  # most of the tests' time is the compiler's
failed=0
$python -m actdet_kernels.gates --capability "$($python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')" \
    --json "$out/gates.json" || failed=1
timeout 300 $python -m pytest -q -p no:cacheprovider tests/kernels ${parallel:-} --durations=5 --junitxml="$out/tests.xml" || failed=1
timeout 270 $python -m pytest -q -p no:cacheprovider -W default bench/test_kernels.py --results "$out/benchmarks.json" \
    --benchmark-columns=median > "$out/benchmarks.log" 2>&1 || failed=1
tail -n 3 "$out/benchmarks.log"
exit $failed
