"""`hvd-async bench`: speeds, beside the limits of the machine measured in the same run."""
