"""What a hostile peer can do to a live node: it goes on serving, names the offender, and takes in nothing false."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from celluler.client import Client
from celluler.content.digest import parse_cid
from celluler_protocols import content
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.hostile import (
    LIBP2P_PROTOCOLS,
    PROTOCOLS,
    Spoken,
    assert_serves,
    await_named,
    framed,
    soon,
    stranger,
    throw_each,
    told_protocols,
    wrong_frames,
)

SEED = 20_26


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        swarm.start("alice")
        swarm.start("bob", join=[swarm.nodes[0].address])
        yield swarm


@pytest.fixture(scope="module")
def node(swarm: Swarm) -> NodeProcess:
    return swarm.nodes[0]


@pytest.fixture(scope="module")
def blob(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Root of a content of 8 MB that the node holds."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    path.write_bytes(random.Random(SEED).randbytes(8 << 20))
    with Client(home=node.home) as client:
        return parse_cid(client.blobs.add(path).cid)


# --- bytes on streams ------------------------------------------------------------------------------------------------


async def test_every_protocol_that_the_node_serves_is_attacked_here(node: NodeProcess) -> None:
    async with stranger(node) as mallory:

        async def told() -> frozenset[str]:
            return told_protocols(mallory, node)

        assert await soon(told) == {spoken.protocol for spoken in PROTOCOLS} | set(LIBP2P_PROTOCOLS)


@pytest.mark.parametrize("spoken", PROTOCOLS, ids=lambda spoken: spoken.protocol)
async def test_nonsense_names_who_sent_it_and_changes_nothing(spoken: Spoken, node: NodeProcess, blob: bytes) -> None:
    """Random bytes, lengths over every limit, and well-formed frames that are no message of the protocol."""
    dice = random.Random(f"{SEED} {spoken.protocol}")
    attacks = [framed(dice.randbytes(size)) for size in (1, 7, 5000)]
    attacks += [b"\xff" + dice.randbytes(5000), b"\xff\xff\xff\xff", bytes(4)]
    attacks += wrong_frames(spoken)
    whole = spoken.frames().encode(spoken.opening)
    torn = [whole[:size] for size in (1, 4, len(whole) - 1)]
    if spoken.names_truncation:
        attacks += torn
    else:
        await throw_each(node, spoken.protocol, torn)
    await await_named(node, await throw_each(node, spoken.protocol, attacks))
    await assert_serves(node, blob)
