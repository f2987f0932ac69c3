#!/bin/bash
# train.py --lr 1e-3
#SBATCH --job-name=digits
#SBATCH '--comment=outlast /shared/jobs/digits'
#SBATCH --partition=gpu
#SBATCH --gpus=1
#SBATCH --time=4:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=USR1@90
#SBATCH --chdir=/shared/project
#SBATCH --open-mode=append
#SBATCH --output=/shared/jobs/digits/supervisor.log

# Near its time limit or when preempted, the job saves its state and is requeued.
exec srun --ntasks=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} /shared/outlast/bin/python -P -m outlast.engines.cluster_main /shared/jobs/digits
