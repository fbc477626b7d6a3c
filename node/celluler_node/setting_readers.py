"""From what a person wrote in a file, a variable or a flag to the value that is meant.

Each reader raises ValueError with the reason.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.identity import public_key_of
from celluler.models.names import parse_reference
from celluler.quantities import parse_bytes

NICKNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,37}[a-z0-9])?")
_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}(/p2p/\w+)?")
REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
ROLES = ("train", "serve", "store")
TRAINING_ROLES = ("worker", "aggregator", "validator")


def text_like(pattern: re.Pattern[str], wanted: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {wanted}")
        return value

    return read


def one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def between(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number in {low}..{high}")
        return value

    return read


def list_of(read_item: Callable[[Any], str], most: int) -> Callable[[Any], tuple[str, ...]]:
    """A TOML array, or text with commas (as variables have it)."""

    def read(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise ValueError(f"{value!r} is not a list of at most {most}")
        return tuple(read_item(item) for item in value)

    return read


def lessee(value: Any) -> str:
    """Whom a model may be kept for: `members`, `none`, or one peer."""
    if value not in ("members", "none"):
        try:
            public_key_of(value)
        except (ProtocolViolation, TypeError, AttributeError):
            raise ValueError(f"{value!r} is neither members, nor none, nor the id of a peer") from None
    return str(value)


def switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("on", "off", "true", "false"):
        return value.lower() in ("on", "true")
    raise ValueError(f"{value!r} is neither on nor off")


def share(value: Any) -> float:
    """A number in 0..1, or text of one, or of a percentage."""
    if isinstance(value, str):
        value = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{value!r} is not a share in 0..1")
    return float(value)


def bytes_or_none(value: Any) -> int:
    """A size, or 0 for none."""
    return 0 if value in (0, "0") and value is not False else parse_bytes(value)


def address(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(
        r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}(/p2p/\w+)?", value
    ):
        raise ValueError(f"{value!r} is not an address such as /ip4/127.0.0.1/tcp/4040")
    _, family, host, _, port, *_ = value.split("/")
    if int(port) > 65535:
        raise ValueError(f"{value!r}: no such port")
    if family in ("ip4", "ip6") and f"ip{ipaddress.ip_address(host).version}" != family:
        raise ValueError(f"{value!r}: {host} is no {family} address")
    return value


def bootstrap(value: Any) -> str:
    found = address(value)
    if "/p2p/" not in found:
        raise ValueError(f"{value!r} lacks the peer's id: it ends in /p2p/12D3KooW…, as `celluler status` prints it")
    return found


def model(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name of a model")
    try:
        parse_reference(value)
    except InvalidSpec as error:
        raise ValueError(f"{value!r} is no name of a model: {error.problem}") from None
    return value


def path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no path")
    return Path(value).expanduser().absolute()


host = text_like(re.compile(r"[A-Za-z0-9.:\[\]_-]{1,253}"), "a host name or address")
