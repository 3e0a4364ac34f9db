config=${1:-{{ target }}}
options=({% for option in options %}{{ option }} {% endfor %}"${@:2}")           # for `hvd-async launch`, such as --set seed=2
environment={{ environment }}                 # the environment that launch/setup.sh made
