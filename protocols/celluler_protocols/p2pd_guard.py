"""Stands between an averager and its p2pd: when the averager ends, however it ends, p2pd and its socket files go too.

Run as `python -I -S p2pd_guard.py PARENT FOLDER p2pd ...`. hivemind lets no caller set up the daemon's process, and
whoever is killed cannot tidy up after himself; so this small process makes FOLDER, starts p2pd, waits, and removes
FOLDER again.
Standard library only, and little of it: it lives as long as a run.
"""

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable

TERMINATE_S = 3.0
_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_PR_SET_PDEATHSIG = 1
_POLL_S = 2.0  # where the kernel has no death signal; elsewhere an idle wake-up


def main(arguments: list[str]) -> int:
    parent, folder, command = int(arguments[0]), arguments[1], arguments[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _set_death_signal(signal.SIGTERM)
    os.setsid()  # whoever kills the averager's process group leaves us time to tidy up
    os.mkdir(folder, 0o700)
    try:
        return _attend(_start(command), lambda: os.getppid() == parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[str]) -> int:
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _set_death_signal(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        if os.getppid() == guard:
            os.execv(command[0], command)  # noqa: S606  a list of arguments, no shell
    finally:
        os._exit(127)


def _attend(child: int, parent_lives: Callable[[], bool]) -> int:
    """The child's exit status. Ends it when told to, or when the parent has gone."""
    ending = False
    while True:
        seen = signal.sigtimedwait(_WATCHED, TERMINATE_S if ending else _POLL_S)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) & 0xFF
        if ending and seen is None:
            os.kill(child, signal.SIGKILL)
        elif not ending and ((seen is not None and seen.si_signo != signal.SIGCHLD) or not parent_lives()):
            os.kill(child, signal.SIGTERM)
            ending = True


def _set_death_signal(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
