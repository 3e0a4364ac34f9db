{% if setup %}
set -eo pipefail
{% for line in setup %}
{{ line }}
{% endfor %}
set -u
{% else %}
set -euo pipefail
# Load modules of the cluster here: module load ...
{% endif %}
[[ -x $environment/bin/hvd-async ]] || { echo "$environment in $PWD: no hvd-async in it; set environment= to the one in which hvd_async is installed" >&2; exit 4; }
export PATH="$environment/bin:$PATH"
