"""`hvd-async doctor`."""

from __future__ import annotations

import argparse

from hvd_async.cli.arguments import verb


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    purpose = "check this machine, MPI and Horovod; under mpirun, also how ranks reach each other"
    parser = verb(verbs, "doctor", purpose, _doctor)
    parser.add_argument("--json", action="store_true", help="print findings as JSON")


def _doctor(arguments: argparse.Namespace) -> int:
    from hvd_async.doctor import main

    return main(arguments.json)
