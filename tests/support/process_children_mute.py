"""Never becomes ready."""

import sys
import time

from celluler_node.processes.serving import Link


def main(link: Link) -> None:
    print("thinking", file=sys.stderr, flush=True)
    time.sleep(60)
