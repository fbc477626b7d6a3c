"""What a node remembers across restarts besides its key and its content: one small JSON file, replaced atomically.

Everything in it is either ours (head numbers, incarnation) or checked again when used (addresses, envelopes), so a
lost or torn file costs a slower start and never a wrong answer.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_KNOWN_PEERS = 64


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """A peer that answered wrongly, as this node has found out. model: CID. evidence: CID, or empty. at_s: Unix
    time."""

    peer: str
    model: str
    why: str
    evidence: str
    at_s: int


@dataclass(slots=True)
class NodeState:
    """incarnation: the last one used. peers: full addresses to rejoin by. models, datasets: digests of the manifests
    kept, hex. catalogue: of those kept only while the swarm announces them. replicas: roots kept for the swarm alone.
    heads: own names and the digests of their newest index, hex. announcements, heads_seen: signed envelopes, hex.
    wrong_answers: the latest of each peer, of the latest peers.
    """

    incarnation: int = 0
    peers: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    catalogue: list[str] = field(default_factory=list)
    replicas: list[str] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)
    announcements: list[str] = field(default_factory=list)
    heads_seen: list[str] = field(default_factory=list)
    wrong_answers: list[WrongAnswer] = field(default_factory=list)


def load_state(path: Path) -> NodeState:
    """The state at `path`; an empty one when there is none or it cannot be read as one."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        state = NodeState(
            incarnation=int(raw.get("incarnation", 0)),
            peers=[str(peer) for peer in raw.get("peers", [])][:MAX_KNOWN_PEERS],
            models=[str(model) for model in raw.get("models", [])],
            datasets=[str(dataset) for dataset in raw.get("datasets", [])],
            catalogue=[str(manifest) for manifest in raw.get("catalogue", [])],
            replicas=[str(root) for root in raw.get("replicas", [])],
            heads={str(name): str(digest) for name, digest in raw.get("heads", {}).items()},
            announcements=[str(envelope) for envelope in raw.get("announcements", [])],
            heads_seen=[str(envelope) for envelope in raw.get("heads_seen", [])],
            wrong_answers=[_wrong_answer(one) for one in raw.get("wrong_answers", [])],
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return NodeState()
    return state


def _wrong_answer(raw: dict[str, Any]) -> WrongAnswer:
    peer, model, why, evidence = (str(raw[name]) for name in ("peer", "model", "why", "evidence"))
    return WrongAnswer(peer, model, why, evidence, int(raw["at_s"]))


def save_state(path: Path, state: NodeState) -> None:
    """Replace the file in one step: a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
