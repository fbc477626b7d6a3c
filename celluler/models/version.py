"""Versions of models and datasets: Semantic Versioning 2.0.0, and nothing looser.

What is a major, minor or patch step is for each kind of manifest to say; here stands which version a step leads to.
Below 1.0.0 nothing is promised yet, and every step counts one place lower: a major one raises the minor number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from semver import Version

from celluler.errors import InvalidSpec

__all__ = ["MAX_VERSION_BYTES", "STEPS", "Version", "check_step", "newest", "parse_version", "predecessor"]

MAX_VERSION_BYTES = 64
STEPS = ("patch", "minor", "major")
"""From the smallest to the largest."""


def parse_version(text: str) -> Version:
    """`1.2.3`, `1.2.3-rc.1+build`. Raises InvalidSpec for anything else, `v1.2` and `1.2` included."""
    try:
        if len(text.encode("utf-8", "surrogatepass")) > MAX_VERSION_BYTES:
            raise ValueError("too long")
        return Version.parse(text)
    except (ValueError, TypeError) as error:
        raise InvalidSpec("version", f"{text[:MAX_VERSION_BYTES]!r} is not a version such as 1.2.3") from error


def newest(ascending: Sequence[str]) -> str:
    """The highest release; a pre-release only when there is nothing else. ascending: at least one valid version."""
    # Told by the text: parsing thousands of versions for each question would be slow.
    releases = (version for version in reversed(ascending) if "-" not in version.partition("+")[0])
    return next(releases, ascending[-1])


def predecessor(version: str, published: Iterable[str]) -> str | None:
    """The highest release below `version`: the one that it must be compared with. None when there is none."""
    own = parse_version(version)
    below = [each for each in map(parse_version, published) if each < own and each.prerelease is None]
    return str(max(below, key=lambda each: (each, str(each)))) if below else None


def check_step(old: str, new: str, step: str) -> None:
    """`new` is at least that step above `old`. A pre-release counts as the release that it leads to.

    A pre-release promises nothing to what follows it. Raises InvalidSpec with the least version allowed as hint.
    """
    before, after = parse_version(old), parse_version(new)
    if after <= before:
        raise InvalidSpec("version", f"{new} is not higher than {old}")
    least = _least(before, step)
    if before.prerelease is None and after.finalize_version() < least:
        raise InvalidSpec(
            "version", f"{new} is too small a step from {old} for a {step} change", hint=f"the least is {least}"
        )


def _least(before: Version, step: str) -> Version:
    if before.major == 0:
        step = STEPS[max(0, STEPS.index(step) - 1)]
    return {"major": before.bump_major, "minor": before.bump_minor, "patch": before.bump_patch}[step]()
