{% for option in more %}
#SBATCH {{ option }}
{% endfor %}
