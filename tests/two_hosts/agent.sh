#!/usr/bin/env bash
# The program that mpirun runs instead of ssh: agent.sh [options] HOST [options] COMMAND...
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
# Like ssh, pass the command as one line to a shell on the host.
exec "$here/onhost.sh" "$host" bash -c "$*"
