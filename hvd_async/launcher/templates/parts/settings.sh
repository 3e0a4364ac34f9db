{% if program %}
options=({% for option in options %}{{ option }} {% endfor %}"$@")           # for `hvd-async launch`, such as --set seed=2
{% else %}
config=${1:-{{ target }}}
options=({% for option in options %}{{ option }} {% endfor %}"${@:2}")           # for `hvd-async launch`, such as --set seed=2
{% endif %}
{% include "parts/where.sh" %}
