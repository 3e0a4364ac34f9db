"""Kill, stop and starve processes of real runs at random, and check that nothing is lost that need not be.

    python -m tests.chaos [--seed 1] [--first 0] [--count 200] [--folder FOLDER] [--table FILE]
    python -m tests.chaos --table FILE --count 0      print the table of what FILE has

Each case depends only on the seed and its number, which decide the strategy, what happens to which process, and when: while
ranks start, during training or evaluation, at the end, or at a point of the protocol, before one access of one call. A run in
which only workers die must end by itself; every other run is started again with --auto-resume until it has finished. Then its
log, its measurements and its folder are checked, and it is replayed. Every fault is printed with the number of its case, so
that the case can be repeated (--first N --count 1), and its folder stays. With --table each result is added to FILE, and
cases that are in it already are left out.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import signal
import sys
import tempfile

from tests.chaos.case import Case
from tests.chaos.table import TrialTable, table_lines
from tests.chaos.trial import run_case


def main() -> int:
    """Run the requested cases, and print the table of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "chaos")
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="JSON lines of results, to which those are added")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # a case under way ends its processes
    table = TrialTable(arguments.table)
    for number in range(arguments.first, arguments.first + arguments.count):
        if (arguments.seed, number) in table:
            continue
        case = Case.draw(arguments.seed, number)
        folder = arguments.folder / f"case{arguments.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = run_case(case, folder)
        table.add(arguments.seed, case, result)
        print(f"{case}: {result}", flush=True)
        if not result.fault:
            shutil.rmtree(folder)
    print("\n".join(table_lines(table.rows)))
    return min(1, sum(bool(row["fault"]) for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
