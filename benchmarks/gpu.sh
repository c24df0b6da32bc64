#!/bin/sh
# All that is measured on one GPU: a 1B-class model of random weights, and both comparisons with TRL.
#
#     benchmarks/gpu.sh [OUT]        results as JSON in OUT (default: benchmarks/results/DATE-GPU)
#
# PYTHON=… is the Python with Rankloop (default: .venv/bin/python). TRL_PYTHON=… and TRL_PPO_PYTHON=… are those of
# environments with TRL; where they are not named, the scripts make their own, and say where they
# can't. ARGS=--quick tries the scripts themselves.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "no-gpu")')
out=${1:-benchmarks/results/$(date +%F)-$gpu}
mkdir -p "$out"
if [ "$gpu" = no-gpu ]; then
    echo "There is no GPU here: what follows tries the scripts, and says nothing about a GPU." >&2
fi

# The arguments are words of their own.
# shellcheck disable=SC2086
measure() {
    name=$1
    shift
    echo "== $name"
    PYTHONPATH=. "$python" "benchmarks/$name.py" --json "$out/$name.json" "$@" ${ARGS:-}
}

measure throughput
measure reward_vs_trl ${TRL_PYTHON:+--trl-python "$TRL_PYTHON"}
measure ppo ${TRL_PPO_PYTHON:+--trl "$TRL_PPO_PYTHON"}
echo "Results are in $out."
