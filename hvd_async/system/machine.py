"""Facts about this machine from the kernel: its processor, and its free memory."""

from __future__ import annotations

import pathlib
import platform
import re


def processor_name() -> str:
    """Return the model of the processor, or its architecture if the model is unknown."""
    return model_in(_read("/proc/cpuinfo")) or platform.processor() or platform.machine()


def model_in(cpuinfo: str) -> str:
    """Return the model of the first processor in the text of /proc/cpuinfo; empty if it names none."""
    found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def available_memory() -> int | None:
    """Return the kernel's estimate of the bytes that processes can get without swapping; None if there is no estimate."""
    found = re.search(r"^MemAvailable:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
