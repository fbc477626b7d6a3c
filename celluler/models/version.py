"""Versions of models: Semantic Versioning 2.0.0, and nothing looser.

Major: inputs or outputs changed meaning. Minor: trained further or anew. Patch: the same weights, other metadata.
"""

from __future__ import annotations

from collections.abc import Iterable

from semver import Version

from celluler.errors import InvalidSpec

__all__ = ["MAX_VERSION_BYTES", "Version", "newest", "parse_version"]

MAX_VERSION_BYTES = 64


def parse_version(text: str) -> Version:
    """`1.2.3`, `1.2.3-rc.1+build`. Raises InvalidSpec for anything else, `v1.2` and `1.2` included."""
    try:
        if len(text.encode("utf-8", "surrogatepass")) > MAX_VERSION_BYTES:
            raise ValueError("too long")
        return Version.parse(text)
    except (ValueError, TypeError) as error:
        raise InvalidSpec("version", f"{text[:MAX_VERSION_BYTES]!r} is not a version such as 1.2.3") from error


def newest(versions: Iterable[Version]) -> Version | None:
    """The highest release; a pre-release only when there is nothing else. None when there is nothing at all."""
    # Of versions that differ in build metadata alone (equal in precedence) the text decides, the same for everybody.
    return max(versions, key=lambda version: (version.prerelease is None, version, str(version)), default=None)
