#!/usr/bin/env bash
# onhost.sh HOST COMMAND...: run a command "on" a host, with its own network, host name and /dev/shm.
set -euo pipefail
host=$1
shift
# shellcheck disable=SC2016  # the inner bash expands these
exec ip netns exec "$host" unshare --uts --ipc --mount \
    bash -c 'hostname "$1" && mount -t tmpfs none /dev/shm && shift && exec "$@"' _ "$host" "$@"
