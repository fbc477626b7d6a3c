"""Golden bytes of announcements and of the catalogue."""

from __future__ import annotations

from celluler.identity import Identity, seal
from celluler_protocols import catalogue
from celluler_protocols.bulletin import HeadAnnouncement, JobAnnouncement, ModelAnnouncement, NoteAnnouncement
from tests.support.vectors import check_vectors

AUTHOR = Identity(bytes(range(32)))
MODEL = ModelAnnouncement("digits", "1.0.0", b"m" * 32, b"r" * 32, 123_456, "alice", 7, 1_700_000_000, 1_700_003_600)
DATASET = ModelAnnouncement(
    "flowers",
    "2.1.0",
    b"n" * 32,
    b"s" * 32,
    7_000_000,
    "",
    10,
    1_700_000_000,
    1_700_003_600,
    "dataset",
    5,
    ("eu", "us"),
)
JOB = JobAnnouncement(b"j" * 32, "train", ("/ip4/192.0.2.1/tcp/4001",), 3, 16, 8, 1_700_000_000, 1_700_000_600)
HEAD = HeadAnnouncement("digits", 2, b"i" * 32, 9, 1_700_000_000, 1_700_003_600)
ACCUSED = Identity(b"x" * 32).peer_id
NOTE = NoteAnnouncement(ACCUSED, b"r" * 32, b"d" * 32, "false chunk", 11, 1_700_000_000, 1_700_086_400)
ALL = (MODEL, DATASET, JOB, HEAD, NOTE)


def test_catalogue_messages_encode_as_documented() -> None:
    announcements = tuple(seal(AUTHOR, record) for record in ALL)
    examples = [
        catalogue.Ask(b"f" * 32),
        catalogue.Next(),
        catalogue.Page((), last=True),
        catalogue.Page(announcements, last=False),
    ]
    check_vectors("catalogue", catalogue.PROTOCOL_ID, catalogue.frames(), examples)
