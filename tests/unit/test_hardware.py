"""Hardware found on machines made of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celluler_node import hardware
from celluler_node.hardware import Accelerator, find_hardware

MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"
CPUINFO = (
    "processor\t: 0\nmodel name\t: Test CPU @ 3 GHz\nflags\t\t: sse2 avx2 fma\n\nprocessor\t: 1\nflags\t\t: other\n"
)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/cpuinfo": CPUINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_a_plain_machine_is_a_cpu_with_its_memory_and_flags(tmp_path: Path) -> None:
    found = find_hardware(machine(tmp_path, {}), system="Linux", architecture="x86_64")
    assert (found.device, found.accelerators) == ("cpu", ())
    assert (found.cores, found.memory_mb, found.available_mb) == (8, 16384, 8192)
    assert (found.cpu, found.cpu_flags) == ("Test CPU @ 3 GHz", ("avx2", "fma", "sse2"))


def test_a_cgroup_of_version_2_limits_cores_and_memory_at_any_level(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/cpu.max": "350000 100000\n",
        "sys/fs/cgroup/outer/memory.max": str(4 << 30),
        "sys/fs/cgroup/outer/memory.current": str(1 << 30),
        "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    }
    found = find_hardware(machine(tmp_path, files))
    assert (found.cores, found.memory_mb, found.available_mb) == (3, 4096, 3072)


def test_a_cgroup_of_version_1_limits_cores_and_memory(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(2 << 30),
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 << 30),
    }
    found = find_hardware(machine(tmp_path, files))
    assert (found.cores, found.memory_mb, found.available_mb) == (1, 2048, 0)


def test_nvidia_devices_are_found_by_their_files(tmp_path: Path) -> None:
    files = {
        "dev/nvidia0": "",
        "dev/nvidia1": "",
        "dev/nvidiactl": "",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Test 1000\nIRQ: 1\n",
    }
    found = find_hardware(machine(tmp_path, files))
    assert found.device == "cuda"
    assert found.accelerators == (Accelerator("cuda", "NVIDIA Test 1000"), Accelerator("cuda", "NVIDIA GPU"))


def test_a_card_that_only_draws_is_no_accelerator(tmp_path: Path) -> None:
    files = {"sys/class/drm/card0/device/vendor": "0x1002\n", "sys/class/drm/card1/device/vendor": "0x8086\n"}
    assert find_hardware(machine(tmp_path, files)).device == "cpu"


def test_amd_and_intel_cards_with_their_compute_drivers_are_accelerators(tmp_path: Path) -> None:
    files = {
        "dev/kfd": "",
        "sys/class/drm/card0/device/vendor": "0x1002\n",
        "sys/class/drm/card0/device/mem_info_vram_total": str(24 << 30),
        "sys/class/drm/card0-DP-1/device/vendor": "0x1002\n",
        "sys/class/drm/card1/device/vendor": "0x8086\n",
        "sys/bus/pci/drivers/xe/bind": "",
    }
    root = machine(tmp_path, files)
    (root / "sys/class/drm/card1/device/driver").symlink_to(root / "sys/bus/pci/drivers/xe")
    found = find_hardware(root)
    assert found.accelerators == (Accelerator("rocm", "AMD GPU", 24576), Accelerator("xpu", "Intel GPU"))


def test_an_apple_chip_is_mps(tmp_path: Path) -> None:
    assert find_hardware(tmp_path, system="Darwin", architecture="arm64").device == "mps"
    assert find_hardware(tmp_path, system="Darwin", architecture="x86_64").device == "cpu"


def test_a_machine_that_tells_nothing_still_has_a_core(tmp_path: Path) -> None:
    found = find_hardware(tmp_path)
    assert found.cores == 8
    assert found.memory_mb >= 0


def test_an_nvidia_smi_that_fails_or_hangs_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 5)

    monkeypatch.setattr(hardware.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(hardware.subprocess, "run", hang)
    assert hardware._nvidia_smi() == ""


def test_looking_at_this_machine_loads_no_numeric_library() -> None:
    program = (
        "import sys; from celluler_node.hardware import find_hardware; found = find_hardware();"
        "assert found.cores >= 1 and found.memory_mb > 0, found;"
        "assert not {'torch', 'numpy', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, env={**os.environ, "PYTHONPATH": "node"})
