"""What a node remembers of its jobs over a restart: one file a job, replaced in one step.

The file is this node's own, but it is parsed as strictly as a message: what cannot be read is left out, with a line in
the log, and ends nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog

from celluler.content.digest import Digest
from celluler.errors import CellulerError
from celluler.jobs.states import MAX_EVENTS
from celluler.learning.roster import MAX_ROSTER_BYTES
from celluler.wire import Length, pack, unpack
from celluler_protocols.jobs_messages import Event, Facts
from celluler_protocols.jobs_orders import MAX_ORDER_BYTES, ChangeOrder

MAX_FILE_BYTES = 1 << 26
_SUFFIX = ".job"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Kept:
    """order: the submitter's envelope. roster: the coordinator's, once there is one. coordinated: by this node.

    changed_to: what the submitter changed since, all of it in one.
    """

    order: Annotated[bytes, Length(1, MAX_ORDER_BYTES)]
    roster: Annotated[bytes, Length(1, MAX_ROSTER_BYTES)] | None
    coordinated: bool
    events: Annotated[tuple[Event, ...], Length(1, MAX_EVENTS)]
    facts: Facts
    changed_to: ChangeOrder


class JobArchive:
    """A folder of jobs. Its methods touch the disk: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, job: Digest, kept: Kept) -> None:
        """Raises OSError when the disk does not take it; the file before stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(job)
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                file.write(pack(kept))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def forget(self, job: Digest) -> None:
        self._path(job).unlink(missing_ok=True)

    def load(self) -> list[Kept]:
        """Everything that can be read, the latest changed last."""
        if not self._folder.is_dir():
            return []
        paths = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        return [kept for path in paths if (kept := _read(path)) is not None]

    def _path(self, job: Digest) -> Path:
        return self._folder / f"{job.hex()}{_SUFFIX}"


def _read(path: Path) -> Kept | None:
    try:
        return unpack(Kept, path.read_bytes(), limit=MAX_FILE_BYTES)
    except (OSError, CellulerError) as error:
        log.warning("job_not_remembered", file=path.name, error=str(error))
        return None
