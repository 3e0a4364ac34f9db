{% if program %}
options=({% for option in options %}{{ option }} {% endfor %}"$@")           # for `hvd-async launch`, such as --set seed=2
{% else %}
config={{ target }}
[[ ${1--} == -* ]] || { config=$1 && shift; }     # the first argument, unless it is an option
options=({% for option in options %}{{ option }} {% endfor %}"$@")           # for `hvd-async launch`, such as --set seed=2
{% endif %}
{% include "parts/where.sh" %}
