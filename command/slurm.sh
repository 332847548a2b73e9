#!/usr/bin/env bash
# Runs every published run on a Slurm cluster.
#
#   bash command/slurm.sh --partition gpu --gres gpu:1 --time 12:00:00       submits them; all flags go to sbatch
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/slurm.sh --gres gpu:1       submits some of them, see command.sh
#   squeue --me --name unixkd                                                shows them
#   scancel --me --name unixkd                                               stops them
#
# There are two job arrays. One has the runs that need no teacher, the other has the students and starts when the first
# has ended. A student whose teacher is not finished ends at once with an error. Each run writes a log to
# experiments/logs/, as with command.sh, and the errors are in slurm.log there. A preempted run is queued again and goes
# on after its last epoch. When both arrays have ended, the same command runs what has failed or been stopped. Put
# CIFAR-100 into data/ first if the cluster's machines cannot download it.
set -euo pipefail
source "$(dirname "$0")/env.sh" requirements.txt
mkdir -p experiments/logs

# submit teachers|students FLAG...: submits an array with one task for each command and prints its job number.
submit() {
  local commands
  commands=$(bash command/command.sh --list "$1") || exit
  sbatch --parsable --array "1-$(wc -l <<<"$commands")" "${@:2}" <<END
#!/usr/bin/env bash
#SBATCH --job-name=unixkd
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=experiments/logs/slurm.log
mapfile -t -O 1 commands <<'COMMANDS'
$commands
COMMANDS
bash command/command.sh --run "\${commands[SLURM_ARRAY_TASK_ID]}"
END
}

teachers=$(submit teachers "$@")
students=$(submit students "$@" --dependency "afterany:${teachers%%;*}") # a federation adds ;cluster
echo "submitted job $teachers, and job $students to start after it"
