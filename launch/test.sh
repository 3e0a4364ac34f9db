#!/usr/bin/env bash
# Set up, then check and test everything; the last lines are pytest's summary.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup=()
mpi=openmpi
selection=(-m 'not slow')

usage() {
    cat <<'TEXT'
usage: launch/test.sh [options] [pytest's arguments]

  --mpi openmpi|mpich|system  test with this MPI (default: openmpi)
  --no-horovod                set up without Horovod
  --slow                      the tests that take minutes too
  --multi30k DIR              folder of the Multi30k corpus, for the tests that use it (or set HVD_ASYNC_MULTI30K)
  --help                      this text
TEXT
}

needs_value() {
    (($# > 1)) || { echo "test: $1: expected a value after it; see --help" >&2 && exit 2; }
}

while (($#)); do
    case $1 in
        --mpi)
            needs_value "$@"
            mpi=$2
            setup+=(--mpi "$2")
            shift
            ;;
        --multi30k)
            needs_value "$@"
            HVD_ASYNC_MULTI30K=$(cd "$2" && pwd)
            export HVD_ASYNC_MULTI30K
            shift
            ;;
        --no-horovod) setup+=(--no-horovod) ;;
        --slow) selection=() ;;
        --help) usage && exit 0 ;;
        *) break ;;
    esac
    shift
done

"$root/launch/setup.sh" "${setup[@]}"
venv=$root/.venv
[[ $mpi == openmpi ]] || venv+=-$mpi
export PATH="$venv/bin:$PATH"
cd "$root"
ruff check .
ruff format --check .
mypy
exec python -m pytest "${selection[@]}" "$@"
