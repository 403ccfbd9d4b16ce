#!/usr/bin/env bash
# One training on several GPUs, one rank each, over MPI: two nodes with four GPUs.
#   sbatch ranks.sh DATASET RUN [OPTIONS OF obelisk train]
#SBATCH --job-name=obelisk-ranks
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail
dataset=${1:?the dataset\'s folder}
run=${2:?the folder of the run}
shift 2

# The same call goes on after a time that was over, or a node that failed.
resume=()
if [ -e "$run/config.toml" ]; then
    resume=(--resume)
fi
# As soon as a rank ends badly, SLURM need not wait for the others, which end by themselves within a minute.
srun --mpi=pmix --kill-on-bad-exit=1 obelisk train "$dataset" --out "$run" "${resume[@]}" "$@"
