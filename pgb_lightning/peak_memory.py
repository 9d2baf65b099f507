"""Peak memory of the current process."""

from __future__ import annotations

import sys
from pathlib import Path

LINUX_STATUS = Path("/proc/self/status")


def peak_memory() -> int | None:
    """Return the peak resident memory of this process so far, in bytes.

    On Linux it is read from ``/proc/self/status``, because ``getrusage`` may report the peak that a new process
    inherited from its parent.

    Returns:
        The peak in bytes; ``None`` where the platform does not report it, such as Windows.
    """
    if LINUX_STATUS.is_file():
        for line in LINUX_STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
