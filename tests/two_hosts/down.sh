#!/usr/bin/env bash
# down.sh PREFIX: remove the hosts that up.sh made, complete or not, and kill all processes on them.
set -uo pipefail
prefix=$1
for host in "${prefix}a" "${prefix}b"; do
    [[ -e /run/netns/$host ]] || continue
    mapfile -t pids < <(ip netns pids "$host")
    ((${#pids[@]})) && kill -KILL "${pids[@]}"
    ip netns del "$host"
    rm -rf "/etc/netns/$host"
done
