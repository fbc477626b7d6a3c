"""Between celluler's peer ids and address texts, and libp2p's objects for them.

An address is `/ip4/…/tcp/…` (or ip6, dns, dns4, dns6), with `/p2p/<peer id>` behind it where it names its peer.
"""

from __future__ import annotations

from collections.abc import Iterable

import base58
import trio
from libp2p.peer.id import ID
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.identity import PeerId, public_key_of

MAX_ADDRESS_CHARACTERS = 256
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_FAMILIES = {"dns": trio.socket.AF_UNSPEC, "dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}
_WILDCARDS = ("/ip4/0.0.0.0/", "/ip6/::/")


def libp2p_id(peer: str) -> ID:
    """Raises ProtocolViolation for text that is no Ed25519 peer id."""
    public_key_of(peer)
    return ID(base58.b58decode(peer))


def peer_of(identifier: ID) -> PeerId:
    """Raises ProtocolViolation for a peer whose key is not Ed25519."""
    text = identifier.to_base58()
    public_key_of(text)
    return PeerId(text)


def parse_address(text: str) -> tuple[Multiaddr, PeerId | None]:
    """The transport part and the peer it names, if it does. Raises InvalidSpec: the text came from a person."""
    problem = "not an address such as /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…"
    if len(text) > MAX_ADDRESS_CHARACTERS:
        raise InvalidSpec("address", "too long")
    try:
        parsed = Multiaddr(text)
        names = tuple(protocol.name for protocol in parsed.protocols())
    except (MultiaddrError, ValueError, TypeError, LookupError) as error:
        raise InvalidSpec("address", f"{problem}: {text[:80]!r}") from error
    if len(names) not in (2, 3) or names[0] not in _HOSTS or names[1] != "tcp" or names[2:] not in ((), ("p2p",)):
        raise InvalidSpec("address", f"{problem}: {text[:80]!r}")
    if len(names) == 2:
        return parsed, None
    peer = PeerId(text.rpartition("/")[2])
    try:
        public_key_of(peer)
    except ProtocolViolation as error:
        raise InvalidSpec("address", str(error)) from error
    return parsed.decapsulate(Multiaddr(f"/p2p/{peer}")), peer


def parse_dialable(text: str) -> tuple[Multiaddr, PeerId]:
    """An address that names its peer. Raises InvalidSpec."""
    transport, peer = parse_address(text)
    if peer is None:
        raise InvalidSpec("address", f"names no peer: {text[:80]!r}", hint="end it with /p2p/<peer id>")
    return transport, peer


def parse_foreign(peer: PeerId, text: str) -> Multiaddr:
    """The same, for an address that a peer told us of `peer`. Raises ProtocolViolation."""
    try:
        transport, named = parse_address(text)
    except InvalidSpec as error:
        raise ProtocolViolation(str(error)) from error
    if named not in (None, peer):
        raise ProtocolViolation(f"address of another peer: {text[:80]!r}")
    return transport


async def resolve(address: Multiaddr) -> tuple[Multiaddr, ...]:
    """An address with a host name becomes those of its IP addresses, by the system's resolver; none if it fails."""
    word = next(iter(address.protocols())).name
    if word in ("ip4", "ip6"):
        return (address,)
    name, port = address.value_for_protocol(word), address.value_for_protocol("tcp")
    try:
        found = await trio.socket.getaddrinfo(name, int(port), type=trio.socket.SOCK_STREAM, family=_FAMILIES[word])
    except OSError:
        return ()
    hosts = dict.fromkeys(sockaddr[0] for *_, sockaddr in found)
    return tuple(Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}") for host in hosts)


def expand(addresses: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Wildcard addresses become those of the interfaces: nobody can dial 0.0.0.0."""
    concrete: list[Multiaddr] = []
    for address in addresses:
        if str(address).startswith(_WILDCARDS):
            concrete += expand_wildcard_address(address)
        else:
            concrete.append(address)
    return list(dict.fromkeys(concrete))
