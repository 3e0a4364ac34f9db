"""`python -m hvd_async.tied PARENT ARGUMENT...`: as `python -m hvd_async`, but told to stop when the process PARENT is gone.

For those that start others and may be killed: a run that nobody watches would go on, and write where its successor does.
"""

from __future__ import annotations

import sys

from hvd_async.__main__ import main
from hvd_async.interpreter import leave_out_current_folder
from hvd_async.ties import tie_to

if __name__ == "__main__":
    leave_out_current_folder()
    tie_to(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
