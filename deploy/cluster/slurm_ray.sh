#!/bin/bash
# Ray on Slurm: a head and a worker on the nodes of one job, then one run on them.
#   sbatch deploy/cluster/slurm_ray.sh imagenet_simclr data.root=/shared/imagenet run.dir=/shared/runs \
#     ray.num_workers=16
# Two minutes before its time is up, or when it is preempted, the run saves, and the job is queued again: the same
# command goes on from the last checkpoint. Not run on a Slurm yet: tested with stand-ins for srun and scontrol.
#SBATCH --job-name=sslmed
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: sbatch slurm_ray.sh CONFIG [KEY=VALUE ...]" >&2
  exit 2
fi
export RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=30
wait_s=${SSLMED_WAIT_S:-300} # for all nodes to join
port=$((20000 + SLURM_JOB_ID % 10000))
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
others=$((SLURM_JOB_NUM_NODES - 1))
# The first address of a node; on nodes with several networks choose the fast one here, and by NCCL_SOCKET_IFNAME.
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS="$address:$port"
unset_address=(env -u RAY_ADDRESS)

steps=() # the background steps, ended with the job
asked='' # whether Slurm wants the nodes back
run=''
# shellcheck disable=SC2329
end_steps() { # by the trap
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
  wait || true
}
trap end_steps EXIT
trap 'asked=yes; [ -z "$run" ] || kill -TERM "$run" 2>/dev/null || true' TERM

"${unset_address[@]}" srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --disable-usage-stats --node-ip-address="$address" --port="$port" \
  --num-cpus="$cpus" --num-gpus="$gpus" &
steps+=($!)
if [ "$others" -gt 0 ]; then
  # Each node looks up its own address, so the words in single quotes are for the shell there.
  # shellcheck disable=SC2016
  "${unset_address[@]}" srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \
    bash -c 'for i in $(seq "$4"); do
      (exec 3<>"/dev/tcp/${1%:*}/${1#*:}") 2>/dev/null && break
      sleep 1
    done
    own=$(hostname --ip-address | cut -d" " -f1)
    exec ray start --block --disable-usage-stats --address="$1" --node-ip-address="$own" \
      --num-cpus="$2" --num-gpus="$3"' \
    worker "$RAY_ADDRESS" "$cpus" "$gpus" "$wait_s" &
  steps+=($!)
fi

python - "$SLURM_JOB_NUM_NODES" "$wait_s" <<'PYTHON' &
import os, socket, sys, time

nodes, wait = int(sys.argv[1]), float(sys.argv[2])
host, port = os.environ["RAY_ADDRESS"].rsplit(":", 1)
end = time.monotonic() + wait


def later(line):
    if time.monotonic() > end:
        sys.exit(f"{line} after {wait:g} s; their steps' output says why")
    time.sleep(1)


while socket.socket().connect_ex((host, int(port))):
    later(f"the head at {host}:{port} does not answer")
import ray

while not ray.is_initialized():
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except ConnectionError:  # the head listens before it can take a driver
        later(f"the head at {host}:{port} takes no driver")
while (there := sum(node["Alive"] for node in ray.nodes())) < nodes:
    later(f"{there} of {nodes} nodes have joined")
PYTHON
run=$!
wait "$run" || { [ -n "$asked" ] || exit 1; }
if [ -n "$asked" ]; then # while the nodes were joining: nothing has begun
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
sslmed train "$@" driver=ray &
run=$!
while kill -0 "$run" 2>/dev/null; do sleep 1; done # a signal would end a plain wait, not the run, which saves
code=0
wait "$run" || code=$?
if [ -n "$asked" ] && [ "$code" -eq 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
