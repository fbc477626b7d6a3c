"""Golden bytes: every message of every protocol, as another implementation must write it.

`CELLULER_WRITE_VECTORS=1` writes the files anew; a change in one is a change of the protocol and shows in review.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celluler.wire import Frames

FOLDER = Path(__file__).parents[2] / "protocols" / "vectors"


def check_vectors(name: str, protocol: str, frames: Frames, examples: list[Any]) -> None:
    """Each example encodes to the golden frame, and the golden frame decodes to the example."""
    written = [{"type": type(m).__name__, "record": repr(m), "frame": frames.encode(m).hex()} for m in examples]
    path = FOLDER / f"{name}.json"
    if os.environ.get("CELLULER_WRITE_VECTORS"):
        path.write_text(json.dumps({"protocol": protocol, "messages": written}, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert golden == {"protocol": protocol, "messages": written}
    for example, vector in zip(examples, golden["messages"], strict=True):
        assert frames.feed(bytes.fromhex(vector["frame"])) == [example]
