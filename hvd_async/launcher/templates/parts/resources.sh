#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node={{ workers_per_node }}       # workers on each node; with GPUs, one per GPU
#SBATCH --cpus-per-task={{ cpus_per_worker }}         # cores of each worker
{{ "#" if not gpus_per_node }}#SBATCH --gpus-per-node={% if gpu_type %}{{ gpu_type }}:{% endif %}{{ gpus_per_node or 4 }}
#SBATCH --time={{ time }}
{% if account %}
#SBATCH --account={{ account }}
{% elif not more %}
##SBATCH --account=PROJECT        # many clusters require one; remove one # to switch a line on
##SBATCH --partition=NAME
##SBATCH --mem-per-cpu=4G         # otherwise the cluster's default
{% endif %}
