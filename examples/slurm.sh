#!/usr/bin/env bash
# Distillation on several nodes under Slurm: FSDP2 over all GPUs of all nodes.
#
#     sbatch examples/slurm.sh pruned MODEL text.jsonl distilled
#
# NOT TESTED BY US on a cluster: two processes on CPUs were (docs/distillation.md, "Many processes").
# All nodes must see the same folders. A job that hits its time limit goes on where it was: submit it again.
#SBATCH --job-name=minitron
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

student=$1 teacher=$2 text=$3 output=$4
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One torchrun a node; it starts one process a GPU.
export OMP_NUM_THREADS=8
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "$host:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m cli distill "$student" --teacher "$teacher" --data "$text" -o "$output" \
  --sequence-length 8192 --activation-checkpointing --async-checkpoints --checkpoint-every 200
