"""The averager of a protocol attacker: the shipped process with the attacker's `hands` in place of its exchange.

Imports no network library before it is that process: whoever starts it need not have one.
"""

from __future__ import annotations

from celluler_node.processes.averager_words import AVERAGER
from celluler_node.processes.serving import Link
from celluler_node.processes.words import Program
from celluler_protocols.averaging_own import OwnWires
from simulations.attacks.protocol.withholding import ServesNoInputs

_NAME = "averager "


class NothingOfOurs(OwnWires):
    """Keeps what it sent to itself: nobody can do its steps again."""

    def serve(self, peer: str, round_number: int, part: int) -> memoryview | None:
        return None


def program_of(attack: str) -> Program:
    """The averager of this attack. Its name tells the process which one that is."""
    return Program(
        _NAME + attack,
        __name__,
        requests=AVERAGER.requests,
        replies=AVERAGER.replies,
        max_blob_bytes=AVERAGER.max_blob_bytes,
        ready_s=AVERAGER.ready_s,
    )


def main(link: Link) -> None:
    from celluler_node.processes import averager as averager_process  # noqa: PLC0415
    from celluler_protocols import averaging  # noqa: PLC0415
    from simulations.attacks.catalogue import parse_attacker  # noqa: PLC0415

    hands = parse_attacker(link.boot.name.removeprefix(_NAME)).hands
    averaging.Exchange = hands  # type: ignore[attr-defined]
    if issubclass(hands, ServesNoInputs):
        averaging.OwnWires = NothingOfOurs  # type: ignore[attr-defined, misc]
    averager_process.main(link)
