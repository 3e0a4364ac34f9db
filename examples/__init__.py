"""Examples, each of which runs from the folder above this one."""
