"""Keeps the files of the archive abreast of the job records, and reads them when the node starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError
from celluler_node.training.archive import JobArchive, Kept
from celluler_node.training.record import JobRecord

LOOK_S = 2.0
"""How long after a change of state, at most, it is on the disk."""
FIGURES_S = 30.0
"""The same for figures of a job that goes on."""

log = structlog.get_logger()

_Version = tuple[object, ...]


class Remembering:
    """records: the desk's own; jobs that leave it are forgotten here too."""

    def __init__(self, archive: JobArchive, records: Mapping[Digest, JobRecord]) -> None:
        self._archive, self._records = archive, records
        self._saved: dict[Digest, tuple[_Version, int, float]] = {}  # what stood there, newest event, when

    async def restore(self) -> list[JobRecord]:
        """Every job that can be read, the latest changed last."""
        found = []
        for kept in await trio.to_thread.run_sync(self._archive.load):
            try:
                record = JobRecord.restore(kept)
            except CellulerError as error:
                log.warning("job_not_remembered", error=str(error))
                continue
            self._saved[record.job] = _version(record), record.life.cursor, trio.current_time()
            found.append(record)
        return found

    async def run(self) -> None:
        """Until cancelled; then once more."""
        try:
            while True:
                await trio.sleep(LOOK_S)
                await self.save(figures_s=FIGURES_S)
        finally:
            with trio.CancelScope(shield=True):
                await self.save(figures_s=0.0)

    async def save(self, *, figures_s: float) -> None:
        """Write down what has changed: states at once, mere figures when the last time was so long ago."""
        gone = [job for job in self._saved if job not in self._records]
        due = [record for record in self._records.values() if self._is_due(record, figures_s)]
        marks = [(record.job, _version(record), record.life.cursor) for record in due]
        files = [(record.job, record.kept()) for record in due]
        if not gone and not due:
            return
        for job in gone:
            del self._saved[job]
        try:
            await trio.to_thread.run_sync(self._write, gone, files)
        except OSError as error:  # tried again: nothing is marked as saved
            log.warning("jobs_not_saved", error=str(error))
            return
        for job, version, cursor in marks:
            self._saved[job] = version, cursor, trio.current_time()

    def _is_due(self, record: JobRecord, figures_s: float) -> bool:
        version, cursor, at_s = self._saved.get(record.job, ((), 0, 0.0))
        changed = version != _version(record)
        return changed or (cursor != record.life.cursor and trio.current_time() - at_s >= figures_s)

    def _write(self, gone: Iterable[Digest], files: Iterable[tuple[Digest, Kept]]) -> None:
        for job in gone:
            self._archive.forget(job)
        for job, kept in files:
            self._archive.save(job, kept)


def _version(record: JobRecord) -> _Version:
    """Changes with whatever must not be lost."""
    return record.life.state, record.life.reason, record.roster is not None, record.outcome
