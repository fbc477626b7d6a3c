"""What the bulk process gives up once it listens: every file but the store's, and every privilege.

It is our own code and needs sockets, so it is no sandbox as a worker has; but it parses what strangers send, and
someone who took it over should find neither keys nor homes. Where the kernel has no Landlock it runs without.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import celluler
import celluler_node
import celluler_protocols
from celluler_node.processes import landlock, limits


def close(store: Path, scratch: Path) -> bool:
    """Must come before any other thread is started. True when the files are confined. Raises OSError."""
    if sys.platform != "linux" or not limits.prctl(limits.PR_SET_NO_NEW_PRIVS, 1):
        return False
    limits.prctl(limits.PR_SET_DUMPABLE, 0)  # nobody looks for keys in its memory
    if not landlock.version():
        return False
    code = [Path(package.__path__[0]) for package in (celluler, celluler_node, celluler_protocols)]
    code += [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    rules = dict.fromkeys(code, landlock.READ)  # what is imported late, such as the words for an error
    rules |= {Path("/dev/urandom"): landlock.READ, Path("/dev/null"): landlock.WRITE_DEVICE}
    rules |= {scratch: landlock.SCRATCH, store: landlock.READ, store / "content": landlock.READ | landlock.WRITE_FILE}
    landlock.restrict(rules, network=True)
    return True
