#!/usr/bin/env bash
# The folds of a cross-validation as a SLURM array, one GPU a fold; the last to end writes the table over all of them.
#   sbatch folds.sh DATASET OUT [OPTIONS OF obelisk crossval]
#SBATCH --job-name=obelisk-folds
#SBATCH --array=0-4
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
dataset=${1:?the dataset\'s folder}
out=${2:?the folder of the runs and tables}
shift 2

# Two minutes before the time is over SLURM tells this script, which tells obelisk: it saves a checkpoint, and the job goes into
# the queue again.
again() {
    kill -TERM "$fold" 2>/dev/null || true
    wait "$fold" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again TERM

srun obelisk crossval "$dataset" --out "$out" --fold "$SLURM_ARRAY_TASK_ID" --folds "$SLURM_ARRAY_TASK_COUNT" "$@" &
fold=$!
wait "$fold"
