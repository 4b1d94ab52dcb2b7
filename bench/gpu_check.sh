#!/usr/bin/env bash
# What only a GPU can show, from the checkout, without install or network; most worth first, since a card may be lent for
# minutes.
#
#   bench/gpu_check.sh [--out DIR] [PART...]       without a PART: those of "first", which take ten minutes at most
#
#   first       correct, capture, step and criterion
#   correct     the kernels at 12 and 100 queries: against float64, twice the same, no wait, captured and replayed
#   capture     the training step: captured and replayed it gives the losses of eager steps, and nothing in it waits
#   step        one line of the training step, 8 clips of 16 x 224 x 224 in half precision: graph, eager, plain
#   criterion   criterion and match of ours at 12 and 100 queries, and one row of Hugging Face's
#   rest        all parts below
#   tests       the other tests that run on a GPU
#   kernels     the other benchmarks of our kernels
#   opponents   those of everything that does the same
#   train       the other lines of the training step
#   decode      reading video, which wants PyAV
#   gates       registers and spills of every kernel, as compiled for this card
#
# A part that reaches its limit is stopped, and the next one begins. DIR, runs/gpu where none is given, then has what the
# part has done: PART.log; PART.xml, a JUnit file written after every test; PART.json, what report.py reads, written after
# every row. PYTHON=... chooses another interpreter than python3. COMMIT=... is what the rows name, where the copy's own
# git does not know it.
set -uo pipefail

FIRST=(correct capture step criterion)
REST=(tests kernels opponents train decode gates)
# Seconds. Those of the first four, and what it takes to end a part that does not obey, fit into ten minutes.
declare -A LIMIT=(
    [correct]=150 [capture]=90 [step]=150 [criterion]=150
    [tests]=420 [kernels]=300 [opponents]=580 [train]=580 [decode]=580 [gates]=400
)
GRACE=10
HALF_PRECISION='
import torch
assert torch.cuda.is_available()
print("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16")
'

main() {
    local out=runs/gpu
    if [ "${1:-}" = --out ]; then
        out=${2:?"gpu_check: --out wants a folder"}
        shift 2
    fi
    local parts
    parts=$(chosen "$@") || exit 2

    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
    unset TRITON_INTERPRET
    python=${PYTHON:-python3}
    half=$($python -c "$HALF_PRECISION" 2> /dev/null) || {
        echo "gpu_check: $python sees no CUDA device (PYTHON=... chooses another)" >&2
        exit 1
    }
    mkdir -p "$out"

    local part failed=()
    for part in $parts; do
        echo "gpu_check: $part, at most ${LIMIT[$part]} s"
        local start=$SECONDS code=0
        "$part" > "$out/$part.log" 2>&1 || code=$?
        tail -n 3 "$out/$part.log"
        case $code in
        0) echo "gpu_check: $part passed in $((SECONDS - start)) s" ;;
        124 | 137) echo "gpu_check: $part STOPPED at its limit of ${LIMIT[$part]} s" ;;
        *) echo "gpu_check: $part FAILED ($code) in $((SECONDS - start)) s" ;;
        esac
        [ "$code" = 0 ] || failed+=("$part")
    done
    if [ ${#failed[@]} != 0 ]; then
        echo "gpu_check: not passed: ${failed[*]}; see $out"
        exit 1
    fi
}

# The parts that the arguments name.
chosen() {
    local name
    for name in "${@:-first}"; do
        case $name in
        first) echo "${FIRST[@]}" ;;
        rest) echo "${REST[@]}" ;;
        *)
            if [ -z "${LIMIT[$name]:-}" ]; then
                echo "gpu_check: no part '$name'; there are first ${FIRST[*]} rest ${REST[*]}" >&2
                return 1
            fi
            echo "$name"
            ;;
        esac
    done
}

# Runs a command within the limit of the part: an interrupt first, on which pytest still writes what it has.
limited() {
    timeout --signal=INT --kill-after="$GRACE" "${LIMIT[$part]}" "$@"
}

test_it() {
    limited $python -m pytest -v -p no:cacheprovider -p bench.junit_as_it_goes --junitxml="$out/$part.xml" --durations=5 "$@"
}

bench_it() {
    limited $python -m pytest -v -p no:cacheprovider -p bench.junit_as_it_goes --junitxml="$out/$part.xml" \
        -W default --results "$out/$part.json" --benchmark-columns=median "$@"
}

# For what is not timed: most of the time of these tests is the compiler's.
PARALLEL=()
in_parallel() {
    # pytest-benchmark, which would say that nothing can be timed so, is not needed.
    $python -c 'import xdist' 2> /dev/null && PARALLEL=(-n auto --maxprocesses 12 -p no:benchmark)
}

KERNELS=tests/kernels/test_gpu.py
SIZES=("(3, 16, 12, 4, 3, None)" "(6, 16, 100, 20, 92, None)" "(6, 16, 100, 63, 92, None)")

# The tests of "correct" by their names, one a line.
correct_tests() {
    local size kind
    for size in "${SIZES[@]}"; do
        for kind in softmax focal; do
            echo "$KERNELS::test_real_sizes_are_the_references_in_float64[$size-$kind]"
        done
    done
    for size in "${SIZES[@]}"; do
        echo "$KERNELS::test_a_captured_graph_replays_other_inputs_targets_and_counts[$size-softmax]"
        echo "$KERNELS::test_nothing_waits_for_the_device[$size]"
        echo "$KERNELS::test_two_runs_give_the_same_bits[$size]"
    done
    echo "$KERNELS::test_batch_norm_does_not_wait_and_replays_from_a_graph[(8, 48, 8, 28)]"
}

correct() {
    mapfile -t names < <(correct_tests)
    in_parallel
    test_it "${names[@]}" "${PARALLEL[@]}"
}

capture() {
    # The tests' conftest.py wants PyAV. The variable makes cuBLAS give the same bits every time.
    CUBLAS_WORKSPACE_CONFIG=:4096:8 test_it --noconftest -m gpu tests/actdet/training/test_train_step.py \
        tests/actdet/training/test_cost.py
}

# The rows of "step" by their names.
step_rows() {
    local name
    for name in actdet eager plain; do
        echo "bench/test_train.py::test_step[8 of 16x224x224-$half-$name]"
    done
}

step() {
    mapfile -t names < <(step_rows)
    bench_it "${names[@]}"
}

# The rows of "criterion" by their names.
criterion_rows() {
    local size operation regime
    for size in B16xL3xN12xM4 B16xL6xN100xM20; do
        for operation in criterion match; do
            for regime in trained near-identical uniform; do
                echo "bench/test_kernels.py::test_$operation[$size-$regime-actdet]"
            done
        done
    done
    echo "bench/test_kernels.py::test_criterion[B16xL6xN100xM20-trained-huggingface]"
}

criterion() {
    mapfile -t names < <(criterion_rows)
    bench_it "${names[@]}"
}

# "--deselect" and each of the lines that are read.
without() {
    sed 's/^/--deselect\n/'
}

tests() {
    in_parallel
    mapfile -t tested < <(correct_tests | without)
    local file files=("$KERNELS")
    for file in tests/kernels/test_*.py; do
        case $file in
        "$KERNELS") ;;
        # They compile for other cards than this one, or run nothing: neither needs a GPU.
        */test_gates.py | */test_specializations.py) ;;
        *) files+=("$file") ;;
        esac
    done
    test_it "${files[@]}" "${PARALLEL[@]}" "${tested[@]}"
}

OPERATIONS=()
for operation in criterion match cost assign clips norm attention centers peaks overlaps; do
    OPERATIONS+=("bench/test_kernels.py::test_$operation")
done

kernels() {
    mapfile -t timed < <(criterion_rows | without)
    bench_it "${OPERATIONS[@]}" "${timed[@]}" -k actdet
}

opponents() {
    mapfile -t timed < <(criterion_rows | without)
    bench_it "${OPERATIONS[@]}" "${timed[@]}" -k "not actdet"
}

train() {
    mapfile -t timed < <(step_rows | without)
    bench_it bench/test_train.py "${timed[@]}" -k test_step
}

decode() {
    $python -c 'import av' || return
    bench_it bench/test_decode.py
}

gates() {
    capability=$($python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    limited $python -m actdet_kernels.gates --capability "$capability" --json "$out/gates.json"
}

main "$@"
