#!/usr/bin/env bash
# What mpirun calls in place of ssh: agent.sh [options] HOST COMMAND...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while [[ $1 == -* ]]; do shift; done
host=$1
shift
# Like ssh, hand the words to a shell there as one line.
exec "$here/onhost.sh" "$host" bash -c "$*"
