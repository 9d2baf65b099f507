"""The name of the CPU that latency is measured on."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def processor_name() -> str:
    """Return the CPU's model name, such as "AMD EPYC 7B13", or a less specific name if the model is not available.

    The name is read from ``/proc/cpuinfo`` on Linux and from ``sysctl`` on macOS.
    """
    try:
        name = _model_name()
    except (OSError, ValueError, subprocess.SubprocessError):
        name = ""
    return name or platform.processor() or platform.machine()


def _model_name() -> str:
    """Return the CPU's model name, or an empty string if the operating system does not provide it.

    Raises:
        OSError: If it cannot be read.
        ValueError: If the output is not text.
        subprocess.SubprocessError: If ``sysctl`` fails.
    """
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    if sys.platform == "linux":
        for line in CPUINFO.read_text().splitlines():
            field, _, value = line.partition(":")
            if field.strip() == "model name":
                return value.strip()
    return ""
