"""What this machine has found out about its own arithmetic: one small file in the home, written by `calibrate`.

A node tells the swarm the class it stands for. Torch, threads and processor make the class: where one of them is no
longer what it was when this was measured, nothing in here is told.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "calibration.json"
MAX_CLASS_BYTES = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """How machines of another class, or of our own, stand to us. noise: the largest deviation of an honest replay;
    laziness: the smallest of one that is not. tolerance: between the two, None where they do not separate."""

    audit_class: str
    noise: float
    laziness: float
    tolerance: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """One precision on this machine. own: replays by another process of the same class. others: classes that this
    machine can take on, so that one can tell whether they may audit each other."""

    precision: str
    torch: str
    cpu: str
    threads: int
    measured_s: float
    own: Standing
    others: tuple[Standing, ...] = ()

    @property
    def audit_class(self) -> str:
        return self.own.audit_class

    def holds(self, cpu: str, threads: int) -> bool:
        """Whether this machine still is what it was."""
        return (self.torch, self.cpu, self.threads) == (torch_version(), cpu, threads)


def torch_version() -> str:
    """Of the torch that workers load, without loading it; empty where there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def load_calibrations(home: Path) -> dict[str, Calibration]:
    """By precision. What cannot be read counts as never measured."""
    try:
        raw = json.loads((home / FILE).read_text("utf-8"))
        return {str(name): _read(str(name), entry) for name, entry in raw.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def save_calibration(home: Path, calibration: Calibration) -> Path:
    """Beside those of other precisions. Raises OSError."""
    kept = load_calibrations(home) | {calibration.precision: calibration}
    path, new = home / FILE, home / f".{FILE}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump({name: asdict(each) for name, each in kept.items()}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return path


def advertised_class(home: Path, cpu: str, threads: int, precision: str = "fp32") -> str:
    """The class that a node may claim in this precision; empty when it was not measured, or not on this machine."""
    found = load_calibrations(home).get(precision)
    return found.audit_class if found is not None and found.holds(cpu, threads) else ""


def _read(precision: str, entry: dict[str, object]) -> Calibration:
    others = entry["others"]
    if not isinstance(others, list):
        raise TypeError("others")
    return Calibration(
        precision=precision,
        torch=str(entry["torch"]),
        cpu=str(entry["cpu"]),
        threads=int(str(entry["threads"])),
        measured_s=float(str(entry["measured_s"])),
        own=_read_standing(entry["own"]),
        others=tuple(map(_read_standing, others)),
    )


def _read_standing(entry: object) -> Standing:
    if not isinstance(entry, dict):
        raise TypeError("a standing is an object")
    name, tolerance = str(entry["audit_class"]), entry["tolerance"]
    if not name.isprintable() or not 0 < len(name.encode()) <= MAX_CLASS_BYTES:
        raise ValueError("no audit class")
    figures = [float(entry["noise"]), float(entry["laziness"]), 0.0 if tolerance is None else float(tolerance)]
    if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
        raise ValueError("no deviation")
    return Standing(name, figures[0], figures[1], None if tolerance is None else figures[2])
