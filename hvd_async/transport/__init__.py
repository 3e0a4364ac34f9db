"""Ways in which ranks reach a shared block of memory. Only this package imports MPI."""
