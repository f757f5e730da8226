#!/usr/bin/env bash
# A live Slurm on this machine alone, for tests: two virtual nodes, no accounting, false GPUs.
#
#   tests/cluster/slurm.sh start FOLDER     needs root, in a container that may be thrown away, and
#       apt-get install -y --no-install-recommends slurm-wlm munge slurm-wlm-basic-plugins
#   tests/cluster/slurm.sh stop FOLDER
#
# It replaces /etc/slurm/slurm.conf: Snakemake's Slurm plugin strips SLURM_CONF from the environment
# of its jobs, so that no other place works. A configuration that this script did not write is left
# alone, and the script refuses to start.
set -euo pipefail

action=${1:?start or stop}
folder=$(realpath -m "${2:?an empty folder}")
mark="# written by tests/cluster/slurm.sh"
etc=/etc/slurm

stop() {
  for pid in "$folder"/*.pid; do
    [ -s "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
  done
  for file in slurm.conf gres.conf; do
    if grep -qsF "$mark" "$etc/$file"; then rm -f "$etc/$file"; fi
  done
}

configure() {
  mkdir -p "$etc" "$folder"/{state,spool,log}
  for file in slurm.conf gres.conf; do
    if [ -e "$etc/$file" ] && ! grep -qF "$mark" "$etc/$file"; then
      echo "error: $etc/$file is not this script's; allowed: a machine without Slurm" >&2
      exit 2
    fi
  done
  cat >"$etc/slurm.conf" <<EOF
$mark
ClusterName=toy
SlurmctldHost=$(hostname)(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
MpiDefault=none
ReturnToService=2
MinJobAge=300
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-2] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500
PartitionName=short Nodes=n1 MaxTime=60 State=UP DefMemPerCPU=500
EOF
  printf '%s\n%s\n' "$mark" 'NodeName=n[1-2] Name=gpu File=/dev/tty[0-1]' >"$etc/gres.conf"
}

start() {
  configure
  install -d -o munge -g munge -m 755 /run/munge
  if ! munge -n >/dev/null 2>&1; then
    setpriv --reuid munge --regid munge --clear-groups munged --force
  fi
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 60); do
    if [ "$(sinfo -h -t idle -p main -o %D 2>/dev/null)" = 2 ]; then exit 0; fi
    sleep 0.5
  done
  echo "error: Slurm did not come up; its logs are in $folder/log" >&2
  exit 1
}

"$action"
