"""What the jobs of a swarm that trains tell."""

from __future__ import annotations

import pytest

from celluler.client import Job


def transcript_in(reason: str) -> str:
    """The CID of a member's transcript, from what it says of its end."""
    return reason.rpartition("transcript ")[2]


def await_round(job: Job, number: int) -> None:
    for line in job.logs(follow=True):
        if line.metrics.get("round", 0) >= number:
            return
    pytest.fail(f"the job ended before round {number}: {job.refresh().reason}")
