"""Public states of past rounds, as files in the worker's scratch folder: for audits, and for members that join late.

A file is whole or not there. What cannot be written or read is a state less, said on stderr, and never the end of a
run. Knows nothing of what a state is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

_PREFIX = "state-"


class KeptStates:
    """The states before each of the last `keep` rounds that were applied; the oldest goes first."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._roots: dict[int, bytes] = {}
        for left in folder.glob(f"{_PREFIX}*"):
            left.unlink(missing_ok=True)

    @property
    def rounds(self) -> tuple[int, ...]:
        return tuple(sorted(self._roots))

    def keep(self, round_number: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Write down the state before this round, given piece by piece."""
        if not self._keep:
            return
        for old in self.rounds[
            : max(0, len(self._roots) + 1 - self._keep)
        ]:  # first, so that the disk need not hold both
            self._forget(old)
        path, new, hasher = self._path(round_number), self._folder / f"{_PREFIX}new", blake3()
        try:
            with new.open("wb") as file:
                for piece in pieces:
                    hasher.update(piece)
                    file.write(piece)
            new.replace(path)
        except OSError as error:
            print(f"the state before round {round_number} is not kept: {error}", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            return
        self._roots[round_number] = hasher.digest()

    def find(self, round_number: int) -> bytes | None:
        """The state before that round; None when it is not kept, or cannot be read as it was written."""
        if round_number not in self._roots:
            return None
        try:
            data = self._path(round_number).read_bytes()
        except OSError as error:
            data, reason = b"", str(error)
        else:
            reason = "other bytes than were written"
        if blake3(data).digest() == self._roots[round_number]:
            return data
        print(f"the state before round {round_number} is lost: {reason}", file=sys.stderr, flush=True)
        self._forget(round_number)
        return None

    def clear(self) -> None:
        for number in self.rounds:
            self._forget(number)

    def _forget(self, round_number: int) -> None:
        del self._roots[round_number]
        with contextlib.suppress(OSError):
            self._path(round_number).unlink(missing_ok=True)

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{_PREFIX}{round_number}"
