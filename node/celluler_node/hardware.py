"""What this machine can compute with, found without loading a single numeric library.

A node advertises it and plans by it; whether torch was built for the device only a worker can know. Looks at /proc,
/sys and /dev (under `root`, so that tests can show it any machine), at cgroup limits of both versions, and asks
`nvidia-smi` only where an NVIDIA device file exists. What cannot be read counts as not there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ASK_S = 5.0
"""Longest wait for nvidia-smi: a driver that hangs must not keep the node from starting."""
_MB = 1 << 20
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number about 2^63


@dataclass(frozen=True, slots=True)
class Accelerator:
    """device: cuda, rocm, xpu or mps. memory_mb: None where it is not told, or shared with the CPU."""

    device: str
    name: str
    memory_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """device: of the first accelerator, else cpu. cores: that this process may keep busy. memory_mb: that it may
    use, available_mb: that it could take now. cpu_flags: such as avx2, sorted."""

    device: str
    accelerators: tuple[Accelerator, ...]
    cores: int
    memory_mb: int
    available_mb: int
    cpu: str
    cpu_flags: tuple[str, ...]
    architecture: str
    system: str


def find_hardware(root: Path = Path("/"), *, system: str | None = None, architecture: str | None = None) -> Hardware:
    """Look at this machine. Takes milliseconds, or as long as nvidia-smi does where there is an NVIDIA device."""
    system, architecture = system or platform.system(), architecture or platform.machine()
    accelerators = tuple(_accelerators(root, system, architecture))
    memory, available = _memory(root)
    cpu, flags = _cpu(root)
    return Hardware(
        device=accelerators[0].device if accelerators else "cpu",
        accelerators=accelerators,
        cores=_cores(root),
        memory_mb=memory // _MB,
        available_mb=min(available, memory) // _MB,
        cpu=cpu or platform.processor() or architecture,
        cpu_flags=flags,
        architecture=architecture,
        system=system,
    )


# --- processor and memory --------------------------------------------------------------------------------------


def _cores(root: Path) -> int:
    """What the scheduler lets us use, less what a cgroup quota takes away again; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def _memory(root: Path) -> tuple[int, int]:
    """(usable, free now) in bytes, under every cgroup limit above us."""
    table = dict(_table(root / "proc/meminfo"))
    total = _kilobytes(table.get("MemTotal", "")) or _sysconf("SC_PHYS_PAGES")
    available = _kilobytes(table.get("MemAvailable", "")) or _sysconf("SC_AVPHYS_PAGES") or total
    for folder in _cgroups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is not None and 0 < limit < _UNLIMITED:
            total = min(total, limit)
            available = min(available, max(0, limit - used))
    return total, available


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Our cgroup for a controller and all above it, as far as they are mounted here."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (f"sys/fs/cgroup/{controller}",) if controllers else ("sys/fs/cgroup", "sys/fs/cgroup/unified")
        for mount in mounts:
            top = root / mount
            here = top / path.strip("/")
            yield from (folder for folder in (here, *here.parents) if folder.is_relative_to(top) and folder.is_dir())


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    """(model, flags) of the first processor; ARM says `Features`."""
    table: dict[str, str] = {}
    for key, value in _table(root / "proc/cpuinfo"):
        table.setdefault(key, value)
    flags = table.get("flags") or table.get("Features") or ""
    return table.get("model name", ""), tuple(sorted(flags.split()))


# --- accelerators ----------------------------------------------------------------------------------------------


def _accelerators(root: Path, system: str, architecture: str) -> Iterator[Accelerator]:
    if system == "Darwin" and architecture == "arm64":
        yield Accelerator("mps", "Apple GPU")
    yield from _nvidia(root)
    yield from _amd(root)
    yield from _intel(root)


def _nvidia(root: Path) -> Iterator[Accelerator]:
    devices = [path for path in _list(root / "dev") if path.name.startswith("nvidia") and path.name[6:].isdigit()]
    if not devices:
        return
    told = [line.rpartition(",") for line in _nvidia_smi().splitlines()] if root == Path("/") else []
    for name, _, memory in told:
        yield Accelerator("cuda", name.strip(), int(memory) if memory.strip().isdigit() else None)
    if told:
        return
    sheets = [dict(_table(path / "information")) for path in _list(root / "proc/driver/nvidia/gpus")]
    names = [sheet.get("Model", "NVIDIA GPU") for sheet in sheets]
    for place in range(len(devices)):
        yield Accelerator("cuda", names[place] if place < len(names) else "NVIDIA GPU")


def _nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    question = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _amd(root: Path) -> Iterator[Accelerator]:
    """Only with the compute driver's device file: a card that merely draws is no accelerator."""
    if (root / "dev/kfd").exists():
        for device in _cards(root, "0x1002"):
            memory = _number(device / "mem_info_vram_total")
            name = _read(device / "product_name") or "AMD GPU"
            yield Accelerator("rocm", name, None if memory is None else memory // _MB)


def _intel(root: Path) -> Iterator[Accelerator]:
    """Only what the xe driver runs; older chips draw and do not compute."""
    for device in _cards(root, "0x8086"):
        if (device / "driver").resolve().name == "xe":
            yield Accelerator("xpu", "Intel GPU")


def _cards(root: Path, vendor: str) -> Iterator[Path]:
    for card in _list(root / "sys/class/drm"):
        if card.name.removeprefix("card").isdigit() and _read(card / "device/vendor") == vendor:
            yield card / "device"


# --- reading what may not be there -----------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdigit() else None


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _table(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of the form `key : value`."""
    for line in _read(path).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _kilobytes(text: str) -> int:
    number = text.removesuffix("kB").strip()
    return int(number) * 1024 if number.isdigit() else 0


def _sysconf(pages: str) -> int:
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
