"""libtorrent over plain TCP on loopback, with one seed and with three: no DHT, no discovery, no encryption, no uTP."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simulations.bench.content_ways import MIB, Child, Content, Missing, Way, make_durable, orders, say

_MODULE = "simulations.bench.content_torrent"
_SEEDS = 3
_START_S = 60.0
_V1_ONLY = 1 << 6  # create_flags_t; no name in Python. SHA-1 pieces: faster here than the newer SHA-256 trees
_SETTINGS = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "allow_multiple_connections_per_ip": True,  # all seeds are on this machine
    "out_enc_policy": 2,  # none
    "in_enc_policy": 2,
    "alert_mask": 1 << 3,  # storage: tells when its cache was flushed
    "connection_speed": 200,
}


@contextmanager
def open_ways(content: Content) -> Iterator[Mapping[str, Way]]:
    if find_spec("libtorrent") is None:
        raise Missing("libtorrent not installed")
    torrent = content.scratch / "content.torrent"
    _describe(content.path, torrent)
    with ExitStack() as stack:
        seeds = [
            stack.enter_context(Child(_MODULE, "seed", str(torrent), str(content.path.parent))) for _ in range(_SEEDS)
        ]
        client = stack.enter_context(Child(_MODULE, "fetch", str(torrent)))

        def bring(count: int) -> Way:
            ports = [seed.about["port"] for seed in seeds[:count]]
            return lambda folder: client.seconds(into=str(folder), ports=ports)

        yield {"torrent 1": bring(1), "torrent 3": bring(_SEEDS)}


def _library() -> Any:
    """What it declares of its types is stricter than what it takes."""
    return import_module("libtorrent")


def _describe(path: Path, torrent: Path) -> None:
    lt = _library()

    files = lt.file_storage()
    lt.add_files(files, str(path))
    description = lt.create_torrent(files, piece_size=MIB, flags=_V1_ONLY)
    lt.set_piece_hashes(description, str(path.parent))
    torrent.write_bytes(lt.bencode(description.generate()))


def _seed(torrent: Path, folder: str) -> None:
    lt = _library()

    session = lt.session({**lt.high_performance_seed(), **_SETTINGS})
    handle = _add(session, lt.torrent_info(str(torrent)), folder)
    _wait(lambda: handle.status().is_seeding and session.listen_port(), _START_S)
    say(port=session.listen_port())
    sys.stdin.read()


def _fetch(torrent: Path) -> None:
    lt = _library()

    session = lt.session({**lt.high_performance_seed(), **_SETTINGS})
    _wait(session.listen_port, _START_S)
    say()
    for order in orders():
        info = lt.torrent_info(str(torrent))
        began = time.perf_counter()
        handle = _add(session, info, order["into"])
        for port in order["ports"]:
            handle.connect_peer(("127.0.0.1", port))
        _wait(lambda handle=handle: handle.status().is_seeding, _START_S)
        _flush(session, handle)
        make_durable(Path(order["into"]) / info.name())
        took = time.perf_counter() - began
        session.remove_torrent(handle)
        say(seconds=took)


def _add(session: Any, info: Any, folder: str) -> Any:
    lt = _library()

    wanted = lt.add_torrent_params()
    wanted.ti, wanted.save_path = info, folder
    return session.add_torrent(wanted)


def _flush(session: Any, handle: Any) -> None:
    """Verified is not yet written: its last blocks may still be in its own memory."""
    handle.flush_cache()
    _wait(lambda: any(type(one).__name__ == "cache_flushed_alert" for one in session.pop_alerts()), _START_S)


def _wait(ready: Any, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not ready():
        if time.monotonic() > deadline:
            say(missing=f"libtorrent was not ready within {within_s:g} s")
            sys.exit(1)
        time.sleep(0.002)


if __name__ == "__main__":
    _seed(Path(sys.argv[2]), sys.argv[3]) if sys.argv[1] == "seed" else _fetch(Path(sys.argv[2]))
