#!/usr/bin/env bash
# cluster.sh: a real Slurm on this machine, for tests. Each node has its own network, host name and /dev/shm, and pretends to
# have more cores, and GPUs, than there are. Needs root; writes nothing outside of DIR except network namespaces.
#
#   cluster.sh install              install the packages, on Debian and its derivatives
#   cluster.sh start DIR NAME       start the daemons: a head, node1 and node2, and partitions main, low (preempted) and high
#   cluster.sh exec DIR COMMAND...  run a command where Slurm's clients work
#   cluster.sh kill-node DIR N      power failure: send SIGKILL to every process on nodeN
#   cluster.sh start-node DIR N     power on
#   cluster.sh list DIR             print jobs and processes on the nodes, except the daemons
#   cluster.sh stop DIR             end jobs and daemons, and remove all files; silent if there is nothing
#
# NAME is the prefix of the network namespaces. Written for Slurm 20.11 to 23.11; no systemd, cgroups or database.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

readonly NODES=2 CPUS=32 GPUS=4 MEGABYTES=8000 NET=10.79.0 PORT=16817

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

install() {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends \
        munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins iproute2 libpmix-dev
}

# --- processes

# A process that is dead but not reaped yet does not count as running.
runs() {
    [[ -r /proc/$1/status ]] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null
}

pid_in() {
    [[ -s $1 ]] && cat "$1"
}

wait_for() { # SECONDS CONDITION...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

# on HOST COMMAND...: run the command as a process of that host.
on() {
    local host=$1
    shift
    # In a shared /dev/shm, files of different hosts would be confused.
    # shellcheck disable=SC2016  # the inner shell expands these
    nsenter "--net=/run/netns/$name-$host" unshare --uts --mount --propagation private -- bash -euc '
        hostname "$1"
        mount -t tmpfs -o mode=1777,size=2g tmpfs /dev/shm
        mount --bind "$2/etc/hosts" /etc/hosts
        shift 2
        exec "$@"' _ "$host" "$dir" "$@" </dev/null >"$dir/log/$host.out" 2>&1
}

client() {
    nsenter --target "$(pid_in "$dir/run/slurmctld.pid")" --net --uts --mount --wd="$PWD" -- "$@"
}

start_node() {
    mkdir -p "$dir/tmp/node$1"
    chmod 1777 "$dir/tmp/node$1"
    on "node$1" slurmd -c -N "node$1"
    wait_for 10 test -s "$dir/run/slurmd-node$1.pid" || fail "node$1 did not start; see $dir/log"
    readlink "/proc/$(pid_in "$dir/run/slurmd-node$1.pid")/ns/uts" >"$dir/run/node$1.uts"
}

# All processes with the host name of nodeN: slurmd, steps, their tasks, and leftovers of these.
pids_of_node() {
    local wanted folder
    wanted=$(cat "$dir/run/node$1.uts" 2>/dev/null) || return 0
    for folder in /proc/[0-9]*; do
        [[ $(readlink "$folder/ns/uts" 2>/dev/null) == "$wanted" ]] && echo "${folder#/proc/}"
    done
    return 0
}

kill_node() {
    local -a pids
    while mapfile -t pids < <(pids_of_node "$1") && ((${#pids[@]})); do
        kill -KILL "${pids[@]}" 2>/dev/null || true
        wait_for 5 gone "${pids[@]}" || break
    done
    rm -f "$dir/run/slurmd-node$1.pid" "$dir/run/node$1.uts"
    # Sockets do not outlive a real machine: a step that is started again would find its socket in use.
    rm -rf "${dir:?}/tmp/node$1" "$dir/spool/node$1"/*pmix*
}

gone() {
    local pid
    for pid in "$@"; do
        ! runs "$pid" || return 1
    done
}

# --- start

write_hosts() {
    {
        cat /etc/hosts
        echo "$NET.1 head"
        for ((i = 1; i <= NODES; i++)); do echo "$NET.$((10 + i)) node$i"; done
    } >"$dir/etc/hosts"
}

write_configuration() {
    cat >"$dir/etc/slurm.conf" <<TEXT
ClusterName=test
SlurmctldHost=head($NET.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credentials have expired before it starts again; 5 is the minimum.
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
# PMIx keeps files of a job here; nodes must not share them.
TmpFS=$dir/tmp/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
MailProg=/bin/true
# No cgroups: processes are followed from parent to child.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
# Trust the numbers of cores given below.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmctldTimeout=30
SlurmdTimeout=8
InactiveLimit=0
KillWait=5
CompleteWait=0
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
TEXT
    for ((i = 1; i <= NODES; i++)); do
        echo "NodeName=node$i NodeHostname=node$i NodeAddr=$NET.$((10 + i)) Port=$((PORT + 1)) CPUs=$CPUS" \
            "RealMemory=$MEGABYTES Gres=gpu:$GPUS State=UNKNOWN"
    done >>"$dir/etc/slurm.conf"
    cat >>"$dir/etc/slurm.conf" <<TEXT
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low  Nodes=ALL State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL State=UP PriorityTier=100 PreemptMode=OFF
TEXT
    {
        echo "AutoDetect=off"
        echo "NodeName=node[1-$NODES] Name=gpu File=$dir/dev/nvidia[0-$((GPUS - 1))]"
    } >"$dir/etc/gres.conf"
}

make_network() {
    ip netns add "$name-head"
    ip -n "$name-head" link set lo up
    ip -n "$name-head" link add bridge0 type bridge
    ip -n "$name-head" addr add "$NET.1/24" dev bridge0
    ip -n "$name-head" link set bridge0 up
    for ((i = 1; i <= NODES; i++)); do
        ip netns add "$name-node$i"
        ip -n "$name-node$i" link set lo up
        ip -n "$name-head" link add "veth$i" type veth peer name eth0 netns "$name-node$i"
        ip -n "$name-head" link set "veth$i" master bridge0 up
        ip -n "$name-node$i" addr add "$NET.$((10 + i))/24" dev eth0
        ip -n "$name-node$i" link set eth0 up
    done
}

all_idle() {
    local idle
    idle=$(client timeout 5 sinfo --noheader --Node --partition=main --states=idle --format=%N 2>/dev/null | sort -u | wc -l)
    ((idle == NODES))
}

start() {
    ((EUID == 0)) || fail "start: expected to be root"
    umask 022
    mkdir -p "$dir"/{etc,run,log,state,spool,tmp,dev,munge}
    chmod 755 "$dir"
    chmod 700 "$dir/munge"
    echo "$name" >"$dir/name"
    for ((i = 1; i <= NODES; i++)); do mkdir -p "$dir/spool/node$i"; done
    # GPUs: devices that behave like /dev/null. Slurm accepts no plain files.
    for ((i = 0; i < GPUS; i++)); do
        [[ -c $dir/dev/nvidia$i ]] || mknod -m 666 "$dir/dev/nvidia$i" c 1 3
    done
    write_hosts
    write_configuration
    make_network
    [[ -s $dir/munge/key ]] || mungekey --create --keyfile "$dir/munge/key"
    munged --key-file "$dir/munge/key" --socket "$dir/run/munge.socket" --pid-file "$dir/run/munged.pid" \
        --log-file "$dir/munge/munged.log" --seed-file "$dir/munge/seed" --num-threads 2 </dev/null >"$dir/log/munged.out" 2>&1
    on head slurmctld -c
    wait_for 10 test -s "$dir/run/slurmctld.pid" || fail "slurmctld did not start; see $dir/log"
    for ((i = 1; i <= NODES; i++)); do start_node "$i"; done
    wait_for 30 all_idle || fail "not all nodes are idle; see $dir/log"
}

list() {
    local pid
    client timeout 5 squeue --noheader --format='job %i %T'
    for ((i = 1; i <= NODES; i++)); do
        for pid in $(pids_of_node "$i"); do
            [[ $pid == "$(pid_in "$dir/run/slurmd-node$i.pid")" ]] || echo "node$i: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
        done 2>/dev/null
    done
}

# --- stop

no_jobs() {
    [[ -z $(client timeout 5 squeue --noheader --format=%i 2>/dev/null) ]]
}

end_daemons() {
    local file pid
    for file in "$@"; do
        pid=$(pid_in "$file") || continue
        runs "$pid" || continue
        kill -TERM "$pid" 2>/dev/null || true
        wait_for 10 gone "$pid" || kill -KILL "$pid" || true
    done
}

stop() {
    local pid namespace
    if pid=$(pid_in "$dir/run/slurmctld.pid") && runs "$pid"; then
        client timeout 10 scancel --full --user=root 2>/dev/null || true
        wait_for 15 no_jobs || true
    fi
    end_daemons "$dir"/run/slurm*.pid
    end_daemons "$dir"/run/munged.pid
    for ((i = 1; i <= NODES; i++)); do kill_node "$i"; done
    for namespace in /run/netns/"$name"-*; do
        [[ -e $namespace ]] && ip netns del "${namespace##*/}"
    done
    return 0
}

action=${1:-}
[[ $action != install ]] || { install && exit 0; }
(($# > 1)) || fail "expected install, start, exec, kill-node, start-node or stop, and a folder"
dir=$(realpath -m "$2")
export SLURM_CONF=$dir/etc/slurm.conf
if [[ $action == start ]]; then
    name=${3:?a name}
else
    [[ -s $dir/name ]] || exit 0
    name=$(cat "$dir/name")
fi
case $action in
    start) start ;;
    exec) shift 2 && client "$@" ;;
    kill-node) kill_node "${3:?a number}" ;;
    start-node) start_node "${3:?a number}" ;;
    list) list ;;
    stop) stop ;;
    *) fail "$action: unknown" ;;
esac
