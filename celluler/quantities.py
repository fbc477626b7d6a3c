"""Sizes and durations as people write them, both ways."""

from __future__ import annotations

import re
from typing import Any

_BYTES = re.compile(r"(\d{1,16}(?:\.\d{1,9})?) ?(B|[KMGT]i?B)?", re.IGNORECASE | re.ASCII)
_POWERS = tuple(enumerate("kmgt", 1))
_UNITS = {"b": 1} | {f"{u}b": 1000**n for n, u in _POWERS} | {f"{u}ib": 1024**n for n, u in _POWERS}
_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", re.ASCII)


def parse_bytes(value: Any) -> int:
    """`10GiB`, `500 MB`, `1048576` or a whole number, in bytes. Raises ValueError, also for none at all."""
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    size = value if type(value) is int else 0
    if match:
        unit = _UNITS[(match[2] or "B").lower()]
        size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if size <= 0:
        raise ValueError(f"{value!r} is no size: write 512MiB, 10GiB or a number of bytes")
    return size


def parse_duration(value: Any) -> int:
    """`2h`, `1h30m`, `90s` or a whole number of seconds. Raises ValueError, also for none at all."""
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    seconds = value if type(value) is int else 0
    if match:
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if seconds <= 0:
        raise ValueError(f"{value!r} is no duration: write 2h, 1h30m, 90s or a number of seconds")
    return seconds


def format_bytes(size: float) -> str:
    """`0 B`, `4.5 MiB`: for tables."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError  # the last unit returns


def format_duration(seconds: float) -> str:
    """`0.3 s`, `42 s`, `3 m 05 s`, `2 h 01 m`, `3 d 04 h`: for tables."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for name, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part:02d} {below}"
    raise AssertionError  # 60 seconds and more are a minute
