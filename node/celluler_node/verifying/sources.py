"""Every transcript of a run that can be had, without being told where: named by the model, or announced by members.

Any transcript names the members; each of them may have announced its own. What comes is bounded in bytes and in time,
and believed in nothing: what is of another run, or holds something false, is left out and told with its provider.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from celluler.content.digest import Codec, Digest, cid_of, digest_of
from celluler.errors import CellulerError, PeerViolation
from celluler.identity import PeerId
from celluler.learning.roster import RosterView
from celluler.learning.sift import sift
from celluler.learning.transcript import MAX_FILE_BYTES, Opening, Transcript
from celluler.learning.verify import Archive
from celluler_node.verifying.arithmetic import IntegerArithmetic
from celluler_node.verifying.papers import open_papers

Find = Callable[[Digest, Sequence[PeerId]], Awaitable[Iterable[tuple[PeerId, Digest]]]]
"""(job, peers) → what each says is its transcript of it. Raises a CellulerError."""
FetchSome = Callable[[Digest, int], Awaitable[Path]]
"""(root, bytes at most) → its file. Raises a CellulerError."""

MAX_BYTES = 1 << 32
"""Of all transcripts that are fetched for one verification, unless more is asked for."""
MAX_TRANSCRIPTS = 192
"""Looked at: those that the model names, and one a member."""
FETCH_S = 900.0
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Consulted:
    """A transcript that was looked for. transcript: its CID, or the path of a file given. peer: who says that it is its
    own, empty when the model or the user names it. problem: why it was left out, empty when it was used."""

    transcript: str
    peer: str = ""
    problem: str = ""


@dataclass(slots=True)
class _Candidate:
    transcript: str
    peer: str = ""
    path: Path | None = None
    problem: str = ""
    opening: Opening | None = None
    given: bool = False


@dataclass(slots=True)
class Gathering:
    """One run's transcripts, collected. job: whose run. most_bytes: of all that is fetched. only: the envelope of the
    run's roster, when that is known beforehand."""

    job: Digest
    find: Find
    fetch: FetchSome
    most_bytes: int = MAX_BYTES
    only: bytes | None = None
    roster: RosterView | None = None
    """Of the run; known as soon as one transcript was opened."""
    _known: dict[str, _Candidate] = field(default_factory=dict)
    _asked: set[PeerId] = field(default_factory=set)
    _under_way: int = 0
    _returned: trio.Event = field(default_factory=trio.Event)

    def give(self, path: Path) -> None:
        """A file that the user has."""
        self._known[str(path)] = _Candidate(str(path), path=path, given=True)
        self._open(self._known[str(path)])

    async def name(self, roots: Iterable[Digest]) -> None:
        """Contents said to be transcripts of the run."""
        await self._take([("", root) for root in roots])

    async def ask(self, peers: Iterable[PeerId]) -> None:
        """What these have announced; as soon as the members are known, them too. Nobody is asked twice."""
        wanted = [*peers, *await trio.to_thread.run_sync(self._members)]
        while new := [peer for peer in dict.fromkeys(wanted) if peer not in self._asked]:
            self._asked.update(new)
            try:
                await self._take(list(await self.find(self.job, new)))
            except CellulerError:  # nobody to ask: what is at hand is what there is
                return
            wanted += await trio.to_thread.run_sync(self._members)

    def choose(self) -> tuple[list[Path], tuple[Consulted, ...]]:
        """(the files to verify together, what became of each). Reads all that was found; runs in a thread."""
        self._keep_one_run()
        with ExitStack() as stack:
            usable = [one for one in self._known.values() if not one.problem and one.path is not None]
            opened = [(one, Transcript(stack.enter_context(_path(one).open("rb")))) for one in usable]
            found = [(one, file) for one, file in opened if not one.given]
            given = [file for one, file in opened if one.given]
            if self.roster is not None:
                problems = sift([file for _, file in found], given, self.roster, IntegerArithmetic())
                for (one, _), problem in zip(found, problems, strict=True):
                    one.problem = problem
        consulted = tuple(Consulted(one.transcript, one.peer, one.problem) for one in self._known.values())
        return [_path(one) for one in usable if not one.problem], consulted

    # --- inside ------------------------------------------------------------------------------------------------

    def _members(self) -> tuple[PeerId, ...]:
        """Those of the roster, and who was admitted later as far as the histories at hand go."""
        if self.roster is None:
            return ()
        members = self.roster.members
        with ExitStack() as stack:
            files = []
            for one in self._known.values():
                if one.opening is not None and one.opening.roster == self.roster.raw and not one.problem:
                    file = Transcript(stack.enter_context(_path(one).open("rb")))
                    with suppress(PeerViolation):
                        file.scan(self.roster.rules.parts)
                        files.append(file)
            if any(map(_admits, files)):
                archive = Archive(files, self.roster, IntegerArithmetic())
                with suppress(PeerViolation):
                    for _ in archive.walk():
                        pass
                members = archive.roster.members
        return tuple(member.peer for member in members)

    async def _take(self, told: Sequence[tuple[str, Digest]]) -> None:
        """Fetch and open what is new."""
        new = []
        for peer, root in told:
            cid = cid_of(root, Codec.MANIFEST)
            if cid not in self._known and len(self._known) < MAX_TRANSCRIPTS:
                self._known[cid] = _Candidate(cid, peer)
                new.append((self._known[cid], root))
        room = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for candidate, root in new:
                nursery.start_soon(self._fetch, candidate, root, room)
        for candidate, _ in new:
            if candidate.path is not None:
                await trio.to_thread.run_sync(self._open, candidate)

    async def _fetch(self, candidate: _Candidate, root: Digest, room: trio.CapacityLimiter) -> None:
        async with room:
            while self.most_bytes < MAX_FILE_BYTES and self._under_way:
                await self._returned.wait()  # what others do not use of their share comes back
            allowed = min(MAX_FILE_BYTES, self.most_bytes)
            self.most_bytes -= allowed
            self._under_way += 1
            used = 0
            try:
                with trio.fail_after(FETCH_S):
                    candidate.path = await self.fetch(root, allowed)
                used = candidate.path.stat().st_size
            except trio.TooSlowError:
                candidate.problem = f"not here within {FETCH_S:.0f} s"
            except CellulerError as error:
                candidate.problem = str(error)
            finally:
                self.most_bytes += allowed - min(used, allowed)
                self._under_way -= 1
                self._returned.set()
                self._returned = trio.Event()

    def _open(self, candidate: _Candidate) -> None:
        """Whether it is of a run of this job, by its papers."""
        try:
            with _path(candidate).open("rb") as file:
                opening = Transcript(file).opening
            if digest_of(opening.order) != self.job:
                candidate.problem = "of another job's run"
                return
            papers = open_papers(opening, None)
        except PeerViolation as error:
            candidate.problem = str(error)
            return
        except OSError as error:
            candidate.problem = f"cannot be read: {error.strerror}"
            return
        candidate.opening = opening
        self.roster = self.roster or papers.roster

    def _keep_one_run(self) -> None:
        """A coordinator may have signed two rosters for its job. The run is the one that more transcripts are of; of
        equals, the one that was found first."""
        opened = [one for one in self._known.values() if one.opening is not None]
        if not opened:
            return
        rosters = [one.opening.roster for one in opened if one.opening is not None]
        raw = self.only or max(dict.fromkeys(rosters), key=rosters.count)
        for one in opened:
            if one.opening is not None and one.opening.roster != raw:
                one.problem = "of another run of this job, with another roster"
            elif one.opening is not None:
                self.roster = open_papers(one.opening, None).roster


def _admits(file: Transcript) -> bool:
    """Whether it says of any height that somebody was admitted."""
    heights = (file.height(number) for number in range(len(file)))
    return any(height is not None and height.certificate.body.admitted for height in heights)


def _path(candidate: _Candidate) -> Path:
    assert candidate.path is not None, "asked only of those that are here"
    return candidate.path
