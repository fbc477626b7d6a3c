"""Becomes ready, then ignores both the end of its channel and SIGTERM."""

import signal
import time

from celluler_node.processes.frames import encode
from celluler_node.processes.serving import Link
from celluler_node.processes.words import Kind, Ready


def main(link: Link) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link.transmit(encode(Kind.READY, Ready(link.isolation)))
    while True:
        time.sleep(60)
