{% if setup or conda %}
set -eo pipefail
{% for line in setup %}
{{ line }}
{% endfor %}
{% if conda %}
# `conda` is a function of interactive shells; CONDA_EXE is the program.
type -P "${CONDA_EXE:-conda}" >/dev/null || { echo "--conda $conda: got no conda on PATH, expected one; load its module with --setup, or set CONDA_EXE" >&2; exit 4; }
eval "$("${CONDA_EXE:-conda}" shell.bash hook)"
conda activate "$conda" || { echo "--conda $conda: conda cannot activate it; \`conda env list\` shows the environments" >&2; exit 4; }
environment=$CONDA_PREFIX
{% endif %}
set -u
{% else %}
set -euo pipefail
# Load modules of the cluster here: module load ...
{% endif %}
[[ -x $environment/bin/hvd-async ]] || { echo "$environment in $PWD: no hvd-async in it; set {{ "conda" if conda else "environment" }}= to the one in which hvd_async is installed" >&2; exit 4; }
export PATH="$environment/bin:$PATH"
