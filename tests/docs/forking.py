"""Run Python code in processes of its own that have torch loaded already: importing it takes longer than the code of a page.

Reads requests as lines of JSON from standard input, and answers each with a line: exit status, and output with errors.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import signal
import sys
import traceback
import warnings
from typing import Any, NoReturn

LOADED = ("torch.utils.data", "torch.utils.tensorboard", "torch.nn.parallel", "hvd_async.script.run")
SECONDS = 120


def execute(request: dict[str, Any], log: pathlib.Path) -> NoReturn:
    """Run the code of `request` as a script, and end this process with its exit status. Errors are in `log`."""
    signal.alarm(SECONDS)
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(request["folder"])
    os.environ.update(request["variables"])
    warnings.simplefilter("error", UserWarning)
    sys.argv = ["train.py"]
    try:
        exec(compile(request["code"], "<block>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(0)  # by the ordinary way, as a script ends


def main() -> None:
    """Answer requests until standard input ends."""
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        log = pathlib.Path(request["folder"]) / "output.log"
        child = os.fork()
        if child == 0:
            execute(request, log)
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), log.read_text(errors="replace")]), flush=True)


if __name__ == "__main__":
    main()
