"""How ranks reach the store's block of memory. MPI is imported in this package alone."""
