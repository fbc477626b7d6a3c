"""What a user's program holds: `Client`, and `AsyncClient` of the same shape for trio and asyncio.

Both speak HTTP with the local node (docs/reference/http.md), found through its `node.json`, and raise the errors that
the node raised. Nothing here knows of peers, protocols or torch.
"""

from celluler.client.asynchronous import AsyncClient, AsyncJob
from celluler.client.synchronous import Client, Job

__all__ = ["AsyncClient", "AsyncJob", "Client", "Job"]
