#!/usr/bin/env bash
# Everything that wants a GPU, from the checkout: no install, no network, each step under ten minutes.
#   bench/gpu_check.sh tests [DIR]    the gates of this card, and the tests that want it: DIR/gates.json, DIR/tests.xml
#   bench/gpu_check.sh bench [DIR]    the kernels' benchmarks: DIR/benchmarks.json, what report.py reads, and the log
#   bench/gpu_check.sh train [DIR]    those of the training step: DIR/train.json, and the log
#   bench/gpu_check.sh decode [DIR]   those of reading video, which want PyAV: DIR/decode.json, and the log
# DIR is runs/gpu where none is given.
set -uo pipefail
cd "$(dirname "$0")/.."
step=${1:-}
out=${2:-runs/gpu}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET
python=${PYTHON:-python3}
case $step in
tests | bench | train | decode) ;;
*)
    echo "gpu_check: say 'tests', 'bench', 'train' or 'decode', got '$step'" >&2
    exit 2
    ;;
esac
$python -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo "gpu_check: $python sees no CUDA device (PYTHON=... chooses another)" >&2
    exit 1
}
if [ "$step" = decode ] && ! $python -c 'import av' 2>/dev/null; then
    echo "gpu_check: $python has no PyAV to write the videos with (PYTHONPATH=... tells where it is)" >&2
    exit 1
fi
mkdir -p "$out"
failed=0
if [ "$step" = tests ]; then
    $python -c 'import xdist' 2>/dev/null && parallel="-n 8"  # most of the tests' time is the compiler's
    capability=$($python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    $python -m actdet_kernels.gates --capability "$capability" --json "$out/gates.json" || failed=1
    timeout 400 $python -m pytest -q -p no:cacheprovider tests/kernels ${parallel:-} --durations=5 \
        --junitxml="$out/tests.xml" || failed=1
    timeout 150 $python -m pytest -q -p no:cacheprovider --noconftest tests/actdet/test_step.py tests/actdet/test_account.py -m gpu --durations=5 \
        --junitxml="$out/tests_train.xml" || failed=1
else
    case $step in bench) what=kernels name=benchmarks ;; *) what=$step name=$step ;; esac
    timeout 580 $python -m pytest -q -p no:cacheprovider -W default "bench/test_$what.py" \
        --results "$out/$name.json" --benchmark-columns=median > "$out/$name.log" 2>&1 || failed=1
    tail -n 3 "$out/$name.log"
fi
exit $failed
