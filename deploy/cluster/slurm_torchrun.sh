#!/bin/bash
# One run on the nodes of a Slurm job without Ray: a torchrun on each node, a process a GPU.
#   RUNS=/shared/runs NAME=simclr sbatch deploy/cluster/slurm_torchrun.sh imagenet_simclr data.root=/shared/imagenet
# Two minutes before its time is up, or when it is preempted, the run saves, and the job is queued again: the same
# command goes on from the last checkpoint. A lost node ends the job; Slurm queues it again. Not run on a Slurm yet:
# tested with stand-ins for srun and scontrol.
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
if [ $# -lt 1 ] || [ -z "${RUNS:-}" ] || [ -z "${NAME:-}" ]; then
  echo "usage: RUNS=/shared/runs NAME=run sbatch slurm_torchrun.sh CONFIG [KEY=VALUE ...]" >&2
  exit 2
fi
port=$((20000 + SLURM_JOB_ID % 10000))
processes=${SLURM_GPUS_ON_NODE:-1}
threads=$((${SLURM_CPUS_PER_TASK:-1} / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

asked='' # whether Slurm wants the nodes back
trap 'asked=yes' TERM

# Each node has its own number, so the words in single quotes are for the shell there.
# shellcheck disable=SC2016
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  bash -c 'exec torchrun --nnodes="$1" --node-rank="$SLURM_NODEID" --nproc-per-node="$2" \
    --master-addr="$3" --master-port="$4" -m sslmed_dist.cli train "${@:5}"' \
  node "$SLURM_JOB_NUM_NODES" "$processes" "$address" "$port" \
  "$@" driver=local run.dir="$RUNS" run.name="$NAME" &
run=$!
while kill -0 "$run" 2>/dev/null; do
  # The file reaches the run, where a signal would have to pass srun and torchrun first. Again and again: a run that has
  # just started deletes it as one of an earlier start.
  [ -z "$asked" ] || { mkdir -p "$RUNS/$NAME" && touch "$RUNS/$NAME/stop"; }
  sleep 1
done
code=0
wait "$run" || code=$?
if [ -n "$asked" ] && [ "$code" -eq 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
