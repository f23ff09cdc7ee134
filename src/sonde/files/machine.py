"""Memory of the machine, as the system reports it."""

import os
from pathlib import Path


def whole_memory_bytes() -> int:
    """Return the memory of this machine; a very large number if it is unknown."""
    return in_meminfo("MemTotal", 2**60) + in_meminfo("SwapTotal", 0)


def in_meminfo(field: str, otherwise: int) -> int:
    """Return a line of the system's memory report in bytes, or ``otherwise`` if missing."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return otherwise


def resident_bytes() -> int:
    """Return the memory that this process holds now; 0 where the system does not report it."""
    report = Path("/proc/self/statm")
    return int(report.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if report.exists() else 0
