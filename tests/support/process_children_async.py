"""The same words as `process_children`, served in asyncio."""

import asyncio

from celluler_node.processes.serving import Link
from tests.support.process_children import serve_in_asyncio


def main(link: Link) -> None:
    asyncio.run(serve_in_asyncio(link))
