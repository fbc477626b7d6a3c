"""API keys: what each opens, how often it may be used, and the file that keeps them.

The file has hashes alone. SHA-256 without salt or stretching is enough: a key holds 256 random bits, which nobody
guesses however fast the hash is. The command line writes the file, the node reads it again whenever it has changed:
a key that was removed opens nothing from then on. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import structlog

from celluler.errors import CellulerError, IntegrityError, InvalidSpec, LocalError
from celluler.models.names import check_word
from celluler.views import from_json

Scope = Literal["infer", "read", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "read", "metrics", "admin")
"""infer: predictions and embeddings, by any surface. read: GET below /api/v1. metrics: /metrics. admin: everything."""
PREFIX = "celluler"
DEFAULT_A_MINUTE = 600
MAX_A_MINUTE = 1_000_000
MAX_KEYS = 1024
MAX_FILE_BYTES = 1 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Key:
    """id: public, part of the key. sha256: of its whole text, in hex. a_minute: requests; 0 for the node's default."""

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    a_minute: int
    created_s: float

    def opens(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def new_key(name: str, scopes: Sequence[str], a_minute: int = 0, *, now: float | None = None) -> tuple[Key, str]:
    """A key and its text, which is kept nowhere. Raises InvalidSpec."""
    check_word(name, "name")
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidSpec("scope", f"{scope[:32]!r} is not one of {', '.join(SCOPES)}")
    if not scopes:
        raise InvalidSpec("scope", "a key without a scope opens nothing")
    if not 0 <= a_minute <= MAX_A_MINUTE:
        raise InvalidSpec("rate", f"is not in 0..{MAX_A_MINUTE} requests a minute")
    key_id = secrets.token_hex(4)
    text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    known = tuple(scope for scope in SCOPES if scope in scopes)
    return Key(key_id, name, _hash(text), known, a_minute, time.time() if now is None else now), text


def read_keys(path: Path) -> tuple[Key, ...]:
    """Those in the file, none where there is no file. Raises IntegrityError."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_FILE_BYTES))
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError("it has no list of keys")
        return tuple(from_json(Key, item) for item in document["keys"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError, CellulerError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", hint=f"rm {path}, then celluler key create") from None


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file in one step, mode 0600 from its first byte. Raises LocalError."""
    if len(keys) > MAX_KEYS:
        raise LocalError(f"there are {MAX_KEYS} keys already", hint="celluler key rm")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
        temporary.replace(path)
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from None


class KeyRing:
    """The keys of a node at work. clock: seconds, for the rates."""

    def __init__(
        self, path: Path, *, a_minute: int = DEFAULT_A_MINUTE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._a_minute, self._clock = path, a_minute, clock
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}
        self._buckets: dict[str, _Bucket] = {}

    def find(self, text: str) -> Key | None:
        """The key whose text this is. Takes as long for a wrong one as for a right one."""
        self._look()
        key_id = text.split("_", 2)[1] if text.count("_") >= 2 else ""
        key = self._keys.get(key_id)
        same = hmac.compare_digest(_hash(text), key.sha256 if key else _hash(""))
        return key if same else None

    def wait_s(self, key: Key) -> float:
        """Counts a request. Zero when it may go on, else when the next one may."""
        rate = key.a_minute or self._a_minute
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.a_minute != rate:
            bucket = self._buckets[key.id] = _Bucket(rate, self._clock())
        return bucket.take(self._clock())

    def _look(self) -> None:
        """Read the file where it is another one than we read last. A damaged one opens nothing."""
        seen: tuple[int, ...] = ()
        with suppress(OSError):
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except IntegrityError as error:
            log.error("keys_unreadable", error=str(error))
            self._keys = {}
        self._buckets = {key_id: bucket for key_id, bucket in self._buckets.items() if key_id in self._keys}


class _Bucket:
    """A minute's requests at once, filled again evenly."""

    def __init__(self, a_minute: int, now: float) -> None:
        self.a_minute = a_minute
        self._left, self._at = float(a_minute), now

    def take(self, now: float) -> float:
        self._left = min(float(self.a_minute), self._left + (now - self._at) * self.a_minute / 60)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * 60 / self.a_minute
        self._left -= 1
        return 0.0


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
