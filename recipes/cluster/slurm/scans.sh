#!/usr/bin/env bash
# A folder of scans as a SLURM array: each task segments its part, and skips what has labels already.
#   sbatch scans.sh MODEL SCANS LABELS
#SBATCH --job-name=obelisk-scans
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=02:00:00
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
model=${1:?the weights}
scans=${2:?the folder of scans}
labels=${3:?the folder of labels}
shift 3

srun obelisk predict --model "$model" --input "$scans" --output "$labels" \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
