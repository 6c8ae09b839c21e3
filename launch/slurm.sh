#!/usr/bin/env bash
# One run on several machines under SLURM, one process a machine with all its GPUs:
#
#   sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh gpt-tiny --folder /shared/runs/gpt --mesh.fsdp 8
#
# Everything after the script's name goes to train.py. The folder must be one that all machines see.
#SBATCH --job-name=zoo
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Ask politely two minutes before the end: the run saves, ends with 0, and goes on where it is started again.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "${ZOO:-${SLURM_SUBMIT_DIR:-.}}"
export ZOO_JOIN_SECONDS="${ZOO_JOIN_SECONDS:-600}"

# --kill-on-bad-exit: where one process fails, SLURM ends the others too. They end by themselves; this is the net.
exec srun --kill-on-bad-exit=1 --label "${PYTHON:-.venv/bin/python}" train.py "$@"
