#!/usr/bin/env bash
# From nothing to a comparison: set up, make a small corpus, train it in three ways on this machine, compare, translate.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mpi=openmpi

usage() {
    cat <<'TEXT'
usage: launch/demo.sh [--mpi openmpi|mpich|system]

Trains the built-in corpus with the synchronous baseline, with one arrival per update and with as many as there are workers.
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

baseline=()
if ! python -c 'import horovod.torch' 2>/dev/null; then
    echo 'demo: Horovod is not installed, the synchronous baseline is strategy ddp instead'
    baseline=(--set strategy.kind=ddp)
fi

hvd-async data builtin --output data/builtin
hvd-async launch configs/demo-horovod.yaml --run "${baseline[@]}"
hvd-async launch configs/demo-async-1.yaml --run
hvd-async launch configs/demo-async-workers.yaml --run
hvd-async compare runs/demo-*
hvd-async translate runs/demo-async-workers <<'TEXT'
a dog runs on the beach .
two women sit in a park .
a man is riding a bicycle .
TEXT
