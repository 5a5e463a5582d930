"""What a number was measured on: processor, memory, accelerator and package versions, as plain values."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "numba", "torchmetrics", "librosa", "soundfile")


def hardware() -> dict:
    """`{"cpu": model name, "cores": usable, "memory_gb": total, "gpu": names or None}`."""
    return {"cpu": _cpu_name(), "cores": _cores(), "memory_gb": _memory_gb(), "gpu": _gpu_names()}


def versions() -> dict:
    """Installed versions of Python and of the packages that decide a number; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    # affinity, not os.cpu_count(): a container may see more cores than it may use
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError, AttributeError):
        return None


def _gpu_names() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
