{% if conda %}
conda={{ conda }}                       # the environment of conda in which hvd_async is installed, by name or path
{% else %}
environment={{ environment }}                 # the environment in which hvd_async is installed
{% endif %}
