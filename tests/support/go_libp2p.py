"""A go-libp2p peer: the p2pd inside hivemind's wheel, driven over its control socket. hivemind is not imported."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import base58
import trio

from tests.support.protobuf import Fields, decode, encode, receive, send

_IDENTIFY, _CONNECT, _STREAM_OPEN, _STREAM_HANDLER, _LIST_PEERS = 0, 1, 2, 3, 5  # Request.type
_OK = 0
_START_S = 20.0
_LIFE_S = 120


def p2pd_path() -> Path:
    spec = importlib.util.find_spec("hivemind")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "hivemind_cli" / "p2pd"


class Refused(Exception):
    """What the daemon said."""


class GoPeer:
    def __init__(self, control: Path) -> None:
        self._control = control
        self.peer_id = self.address = ""

    async def identify(self) -> None:
        """Learn the daemon's own peer id and where it listens."""
        answer = await self._ask({1: [_IDENTIFY]})
        (about,) = answer[4]
        assert isinstance(about, bytes)
        self.peer_id = _peer_of(about)
        address = decode(about)[2][0]
        assert isinstance(address, bytes)
        self.address = f"{_unpacked(address)}/p2p/{self.peer_id}"

    async def connect(self, address: str) -> None:
        """address: a multiaddr of IPv4, TCP and peer id."""
        _, _, host, _, port, _, peer = address.split("/")
        whom = encode({1: [base58.b58decode(peer)], 2: [_packed(host, int(port))]})
        await self._ask({1: [_CONNECT], 2: [whom]})

    async def peers(self) -> list[str]:
        answer = await self._ask({1: [_LIST_PEERS]})
        return [_peer_of(info) for info in answer.get(6, [])]

    async def open_stream(self, peer: str, protocol: str) -> trio.abc.Stream:
        """The daemon's socket itself, once it has told which stream that is."""
        opening = encode({1: [base58.b58decode(peer)], 2: [protocol.encode()]})
        stream, _ = await self._exchange({1: [_STREAM_OPEN], 3: [opening]})
        return stream

    async def serve(
        self, protocol: str, handler: Callable[[trio.abc.Stream], Awaitable[None]], nursery: trio.Nursery
    ) -> None:
        """Hand over streams that others open at this peer; the daemon brings each by a connection of its own."""

        async def answer(stream: trio.SocketStream) -> None:
            await receive(stream)  # who opened it
            async with stream:
                await handler(stream)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        port: int = listener.socket.getsockname()[1]
        wanted = encode({1: [_packed("127.0.0.1", port)], 2: [protocol.encode()], 3: [0]})
        await self._ask({1: [_STREAM_HANDLER], 4: [wanted]})

    async def _ask(self, request: Fields) -> dict[int, list[int | bytes]]:
        stream, answer = await self._exchange(request)
        await stream.aclose()
        return answer

    async def _exchange(self, request: Fields) -> tuple[trio.SocketStream, dict[int, list[int | bytes]]]:
        stream = await trio.open_unix_socket(str(self._control))
        await send(stream, request)
        answer = await receive(stream)
        if answer[1] != [_OK]:
            await stream.aclose()
            raise Refused(repr(answer.get(2)))
        return stream, answer


@asynccontextmanager
async def go_peer() -> AsyncIterator[GoPeer]:
    """Runs for the length of the block, on loopback and with neither relay nor DHT."""
    with tempfile.TemporaryDirectory(prefix="p2pd-") as folder:  # not tmp_path: a socket's path has at most 107 bytes
        control = Path(folder) / "control"
        command = [str(p2pd_path()), "-listen", f"/unix{control}", "-hostAddrs", "/ip4/127.0.0.1/tcp/0"]
        command += ["-relay=0", "-relayService=0", "-relayDiscovery=0", "-autonat=0", "-natPortMap=0"]
        command += ["-idleTimeout", f"{_LIFE_S}s"]  # should we be killed, it does not outlive us by more
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            with trio.fail_after(_START_S):
                await _control_open(process.stdout)
                peer = GoPeer(control)
                await peer.identify()
            yield peer
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def _control_open(stdout: trio.abc.ReceiveStream) -> None:
    said = ""
    while "Peer ID:" not in said:
        more = await stdout.receive_some()
        assert more, f"p2pd ended: {said}"
        said += more.decode()


def _unpacked(address: bytes) -> str:
    """IPv4 and TCP are all it was told to listen on."""
    assert (address[0], address[5], len(address)) == (4, 6, 8), address.hex()
    return f"/ip4/{socket.inet_ntoa(address[1:5])}/tcp/{int.from_bytes(address[6:], 'big')}"


def _packed(host: str, port: int) -> bytes:
    return b"\x04" + socket.inet_aton(host) + b"\x06" + port.to_bytes(2, "big")


def _peer_of(info: int | bytes) -> str:
    assert isinstance(info, bytes)
    (raw,) = decode(info)[1]
    assert isinstance(raw, bytes)
    return base58.b58encode(raw).decode("ascii")
