"""Runs that were written down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TranscriptNote:
    """A peer signed that the content `cid` is its transcript of the run of `job`. Nothing is known of what is in it."""

    job: str
    peer: str
    cid: str
    issued_s: float
