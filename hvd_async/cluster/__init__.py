"""Machines and ranks: roles, devices and threads of each rank; the environments in which launchers and Slurm tell who is who."""
