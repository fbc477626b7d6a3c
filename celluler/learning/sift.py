"""Transcripts that strangers handed over, sifted before any of them is believed together with the others.

Several files are read as one, so a single liar's file could make an honest run look false: one height too many, another
member's update with a bit changed. Whoever looked for files itself, and cannot choose from whom, leaves out those in
which something is false, and says whose they were. What is false in a run *itself* every file shows, and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.learning.roster import RosterView
from celluler.learning.transcript import Transcript
from celluler.learning.verify import Archive, Arithmetic, Link


def sift(
    found: Sequence[Transcript], given: Sequence[Transcript], roster: RosterView, arithmetic: Arithmetic
) -> tuple[str, ...]:
    """What is wrong with each of `found`, in words; empty where nothing is.

    All are of one run. given: files that are not judged, but may lend what is missing (commits) to judge the others.
    When together they tell of two histories, nothing can be said of their bytes, and nothing is.
    """
    problems = [_history(file, roster, arithmetic) for file in found]
    right = [file for file, problem in zip(found, problems, strict=True) if not problem]
    if not right:
        return tuple(problems)
    together = Archive(
        [*right, *(file for file in given if not _history(file, roster, arithmetic))], roster, arithmetic
    )
    alone = {place: Archive([file], roster, arithmetic) for place, file in enumerate(found) if not problems[place]}
    with suppress(PeerViolation):  # a fork: not one file's fault, and whoever reads them together will find it
        for link in together.walk():
            for place, archive in alone.items():
                archive.roster = together.roster  # with those who were admitted until then
                if not problems[place] and (problem := _bytes(archive, link)):
                    problems[place] = f"round {link.round}: {problem}"
    return tuple(problems)


def _history(file: Transcript, roster: RosterView, arithmetic: Arithmetic) -> str:
    """Whether every height of a file follows from the roster, by signatures alone."""
    try:
        for _ in Archive([file], roster, arithmetic).walk():
            pass
    except PeerViolation as error:
        return str(error)
    return "" if len(file) else "no round is in it"


def _bytes(alone: Archive, link: Link) -> str:
    """Whether what a file has of a height is what was signed."""
    if link.round >= len(alone):
        return ""
    try:
        for part in range(len(link.body.parts)):
            alone.aggregate(link, part)
            for member in link.members:
                alone.wire(link, member, part)
    except ProtocolViolation as error:
        return str(error)
    return ""
