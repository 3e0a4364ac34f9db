#!/usr/bin/env bash
# What mpirun calls in place of ssh: agent.sh [options] HOST [options] COMMAND...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
host=
while true; do
    case $1 in
        -[BbcDEeFIiJLlmOopQRSWw]) shift 2 ;; # these take a value, which may also be part of the word (-p22)
        -*) shift ;;
        *)
            [[ -z $host ]] || break # as with ssh, options may stand on both sides of the host
            host=$1
            shift
            ;;
    esac
done
# Like ssh, hand the words to a shell there as one line.
exec "$here/onhost.sh" "$host" bash -c "$*"
