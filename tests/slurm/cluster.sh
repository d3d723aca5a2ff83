#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine: munge, slurmctld, and several slurmd, each with a host
# name, an address, processes and a scratch disk of its own (network, UTS and PID namespaces).
#
#   cluster.sh start ROOT NODES     cluster.sh boot ROOT N (after a power cut)     cluster.sh stop ROOT
#   cluster.sh power-cut ROOT N     cluster.sh check (exit 1 and the reason where it cannot run)
#
# Needs root, the right to make namespaces, and apt-get install slurm-wlm munge iproute2.
# ROOT/env.sh sets SLURM_CONF and PATH for sbatch and friends; every node has its disk at ROOT/scratch.
set -euo pipefail

check() {
  [ "$(id -u)" = 0 ] || { echo "needs root"; exit 1; }
  local program
  for program in slurmctld slurmd munged sbatch ip unshare; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install slurm-wlm munge iproute2"; exit 1; }
  done
  ip netns add "mt-probe-$$" 2>/dev/null || { echo "may not make network namespaces"; exit 1; }
  ip netns del "mt-probe-$$"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

start() {
  check
  mkdir -p "$ROOT"/{state,spool,log,run,dev,etc,disks,scratch,bin}
  # A bridge 10.77.N.254 with one address per node; N is the first that is free on this machine.
  for ((net = 1; net < 250; net++)); do ip link add "mt$net" type bridge 2>/dev/null && break; done
  echo "$net" >"$ROOT/net"
  echo "$NODES" >"$ROOT/nodes"
  ip addr add "10.77.$net.254/24" dev "mt$net"
  ip link set "mt$net" up
  for g in 0 1 2 3; do mknod -m 666 "$ROOT/dev/nvidia$g" c 1 3; done # Slurm wants a device per GPU
  configure "$net"
  (umask 077 && head -c 1024 /dev/urandom >"$ROOT/etc/munge.key")
  munged --key-file="$ROOT/etc/munge.key" --socket="$ROOT/run/munge.sock" --pid-file="$ROOT/run/munged.pid" \
    --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munge.seed"
  slurmctld -c
  local n
  for ((n = 1; n <= NODES; n++)); do boot "$n"; done
  for _ in $(seq 150); do
    [ "$(sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l)" = "$NODES" ] && return
    sleep 0.1
  done
  tail -n 5 "$ROOT"/log/*.log >&2
  stop
  exit 1
}

configure() {
  local net=$1 port
  port=$(free_port)
  cat >"$ROOT/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(10.77.$net.254)
SlurmUser=root
AuthType=auth/munge
# credentials of a requeued job expire after 5 s instead of 2 minutes, then it may start again
AuthInfo=socket=$ROOT/run/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort=$port
SlurmdPort=16818
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd.%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.%n.log
# no cgroups, no accounting
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# believe this file, not the cores that exist
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
# notice faults and free nodes within seconds
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=10
MinJobAge=3600
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=10000
NodeName=node[1-$NODES] NodeAddr=10.77.$net.[1-$NODES] CPUS=64 RealMemory=256000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=preempt Nodes=ALL PriorityTier=1 GraceTime=30 MaxTime=INFINITE State=UP
CONF
  echo "NodeName=node[1-$NODES] Name=gpu File=$ROOT/dev/nvidia[0-3]" >"$ROOT/etc/gres.conf"
  echo "CgroupPlugin=cgroup/v1" >"$ROOT/etc/cgroup.conf" # not used, but slurmd wants to read one
  { echo "127.0.0.1 localhost" && for ((n = 1; n <= NODES; n++)); do echo "10.77.$net.$n node$n"; done; } >"$ROOT/etc/hosts"
  echo "export SLURM_CONF=$ROOT/etc/slurm.conf PATH=$ROOT/bin:\$PATH" >"$ROOT/env.sh"
  # sacct needs a database; submitit asks it for the states of its jobs, so the controller answers
  cat >"$ROOT/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
echo 'JobID|State|NodeList'
while [ $# -gt 0 ]; do
  [ "$1" = -j ] && scontrol -o show job "$2" 2>/dev/null | awk '{
    split("", value)
    for (i = 1; i <= NF; i++) { at = index($i, "="); value[substr($i, 1, at - 1)] = substr($i, at + 1) }
    id = ("ArrayTaskId" in value) ? value["ArrayJobId"] "_" value["ArrayTaskId"] : value["JobId"]
    nodes = value["NodeList"] == "(null)" ? "None assigned" : value["NodeList"]
    print id "|" value["JobState"] "|" nodes
  }'
  shift
done
SACCT
  chmod +x "$ROOT/bin/sacct"
}

# `ip netns exec` puts /etc/netns/NAME/hosts in the place of /etc/hosts
boot() {
  local n=$1 net name
  net=$(cat "$ROOT/net") name=mt$net-$1
  mkdir -p "/etc/netns/$name" "$ROOT/spool/node$n" "$ROOT/disks/node$n"
  cp "$ROOT/etc/hosts" "/etc/netns/$name/hosts"
  : >"/etc/netns/$name/resolv.conf"
  if [ ! -e "/run/netns/$name" ]; then
    ip netns add "$name"
    ip link add "mt${net}v$n" type veth peer name eth0 netns "$name"
    ip link set "mt${net}v$n" master "mt$net" up
    ip -n "$name" addr add "10.77.$net.$n/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
  fi
  setsid ip netns exec "$name" unshare --uts --ipc --pid --fork --kill-child --mount-proc bash -c \
    "mount --bind '$ROOT/disks/node$n' '$ROOT/scratch'; hostname node$n; slurmd -D -N node$n; :" \
    </dev/null >"$ROOT/log/slurmd.node$n.out" 2>&1 &
  echo $! >"$ROOT/run/node$n.pid"
}

# end PID NAME SIGNAL: stop a process of ours; NAME guards against a number that was given anew
end() {
  grep -qa "$2" "/proc/$1/cmdline" 2>/dev/null || return 0
  kill "-$3" "$1" 2>/dev/null || true
  for _ in $(seq 60); do
    grep -qa "$2" "/proc/$1/cmdline" 2>/dev/null || return 0
    sleep 0.05
  done
  kill -9 "$1" 2>/dev/null || true
}

power_cut() { end "$(cat "$ROOT/run/node$1.pid")" slurmd KILL; } # all processes of the node go with it

stop() {
  local net n nodes
  net=$(cat "$ROOT/net") nodes=$(cat "$ROOT/nodes")
  for ((n = 1; n <= nodes; n++)); do
    [ -e "$ROOT/run/node$n.pid" ] && power_cut "$n"
    ip link del "mt${net}v$n" 2>/dev/null || true
    ip netns del "mt$net-$n" 2>/dev/null || true
    rm -rf "/etc/netns/mt$net-$n"
  done
  [ -e "$ROOT/run/slurmctld.pid" ] && end "$(cat "$ROOT/run/slurmctld.pid")" slurmctld TERM
  [ -e "$ROOT/run/munged.pid" ] && end "$(cat "$ROOT/run/munged.pid")" munged TERM
  ip link del "mt$net"
}

COMMAND=$1 ROOT=${2:-}
export SLURM_CONF=$ROOT/etc/slurm.conf
case $COMMAND in
check) check ;;
start) NODES=$3 && start ;;
boot) boot "$3" ;;
power-cut) power_cut "$3" ;;
stop) stop ;;
*) echo "unknown command $COMMAND" >&2 && exit 2 ;;
esac
