"""/celluler/generate/1: ask a peer to go on with a text. Spec: docs/reference/protocols/generation.md

Participants: an *asker* and a *server*, which holds the model or gets it first. One stream carries one question and its
answers, or one poll of the server's load; the end of the stream ends the answers at the server, at once.
Not promised: that the answers are the model's. Whoever must know has them checked, or loads the model.
Knows nothing of how a name is resolved, a model run, or a text stop found: `messages.py` has the words, `asking.py` the
asker's half, `serving.py` the server's.
"""

from celluler.inference.placement import Load
from celluler_protocols.generation.asking import Ask, Patience, Remote, ask, poll
from celluler_protocols.generation.messages import PROTOCOL_ID, LoadOf, Loads, frames
from celluler_protocols.generation.serving import Busyness, serve_generation, turn_away

__all__ = [
    "PROTOCOL_ID",
    "Ask",
    "Busyness",
    "Load",
    "LoadOf",
    "Loads",
    "Patience",
    "Remote",
    "ask",
    "frames",
    "poll",
    "serve_generation",
    "turn_away",
]
