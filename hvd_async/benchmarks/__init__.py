"""How fast it is, beside the limits of the machine measured in the same run: `hvd-async bench`."""
