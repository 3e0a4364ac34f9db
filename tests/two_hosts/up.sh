#!/usr/bin/env bash
# up.sh PREFIX: two hosts on one machine: network namespaces PREFIXa (10.78.0.1) and PREFIXb (10.78.0.2) joined by a veth pair.
# Needs root and iproute2. The addresses are private to a pair, so that several pairs can be up at once.
set -euo pipefail
prefix=$1
for host in "${prefix}a" "${prefix}b"; do
    ip netns add "$host"
    mkdir -p "/etc/netns/$host"
    printf '127.0.0.1 localhost\n10.78.0.1 %sa\n10.78.0.2 %sb\n' "$prefix" "$prefix" >"/etc/netns/$host/hosts"
done
# Both links have the same name: horovodrun looks for an interface name that all hosts have in common.
ip link add eth0 netns "${prefix}a" type veth peer name eth0 netns "${prefix}b"
number=1
for host in "${prefix}a" "${prefix}b"; do
    ip -n "$host" addr add "10.78.0.$number/24" dev eth0
    ip -n "$host" link set lo up
    ip -n "$host" link set eth0 up
    number=$((number + 1))
done
# The kernel reports a link as up only after a while, and UCX ignores links that are not up.
for host in "${prefix}a" "${prefix}b"; do
    for _ in {1..100}; do
        [[ $(ip -n "$host" link show type veth) == *"state UP"* ]] && break
        sleep 0.05
    done
done
