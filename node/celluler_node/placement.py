"""Whom to ask for a prediction: the likeliest first, the next one when it does not answer."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from celluler.errors import CellulerError, LocalError, NoPeers, PeerViolation, Unavailable
from celluler.identity import PeerId, short
from celluler_node.bounded import bounded
from celluler_protocols import inference
from celluler_protocols.host import Host
from celluler_protocols.inference import Predict, Predicted

ANSWER_S = 90.0
"""One peer's time: it may have to fetch and load the model first."""

log = structlog.get_logger()


async def ask_servers(host: Host, servers: Sequence[PeerId], request: Predict) -> tuple[PeerId, Predicted]:
    """The first answer, and whose it is. Raises LocalError when the request is at fault, else the last failure."""
    failure: CellulerError = NoPeers("no member of the swarm serves models", hint="celluler peer ls")
    for peer in servers:
        try:
            with bounded(ANSWER_S, "prediction", peer=peer):
                stream = await host.open_stream(peer, inference.PROTOCOL_ID)
                return peer, await inference.predict(stream, request)
        except LocalError:
            raise
        except PeerViolation as error:
            host.penalise(peer, error)
            failure = error
        except Unavailable as error:
            failure = error
        log.info("server_failed", peer=short(peer), reason=str(failure))
    raise failure
