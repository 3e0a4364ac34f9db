"""The report of a comparison: the answer first, and every number behind it."""

from hvd_async.report.figures.timeline import TimeWindow
from hvd_async.report.files import write_report
from hvd_async.report.writers.terminal import text_of

__all__ = ["TimeWindow", "text_of", "write_report"]
