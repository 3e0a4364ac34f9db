"""Reports that several test files use, since drawing one takes seconds."""

from __future__ import annotations

import math
import pathlib

import pytest

from hvd_async.comparison.target import Target
from hvd_async.report import TimeWindow, write_report
from tests.comparison.made import BLEU, LOSS
from tests.report.folders import FakeRun, VariantRuns, collect

_SLOW = {"seconds": 0.25, "spread": "log_normal", "deviation": 0.3, "slow_workers": {0: 2.0}}
_LONG = "asynchronous with overlapped pushes, half precision, error feedback, and a bound of staleness"


@pytest.fixture(scope="package")
def large(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a report with two environments, two rates, failed and diverged runs, and a long name."""
    root = tmp_path_factory.mktemp("large #1")  # a name that must be escaped in an address
    sync, fast = FakeRun("horovod", wait=0.5), FakeRun(seconds=50.0, scores={BLEU: 29.0}, refused=7)
    slow_sync, slow = FakeRun("horovod", emulation=_SLOW, num_overrun=3), FakeRun(emulation=_SLOW)
    wanted = [
        VariantRuns("horovod", [sync, sync], "even workers", 0.01),
        VariantRuns("async", [fast, fast], "even workers", 0.01),
        VariantRuns("async", [FakeRun(final=math.nan), None], "even workers", 0.1, is_chosen=False),
        VariantRuns(_LONG, [fast, None], "even workers", 0.01),
        VariantRuns("horovod", [slow_sync], "one slow worker", 0.01),
        VariantRuns("async", [slow], "one slow worker", 0.01),
    ]
    fields = {"rates": (0.01, 0.1), "source": "/home/x/suite.yaml", "text": "x" * 300}
    collection = collect(root, wanted, Target(LOSS, 2.5), **fields)
    return write_report(collection, root / "report", TimeWindow(10.0, 5.0))[0].parent
