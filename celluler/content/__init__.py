"""Content: bytes named by digest, cut into chunks under a Merkle manifest, kept by a store, fetched from anybody.

Synchronous throughout: callers that must not block use a thread. Knows nothing of streams or of who a peer is.
"""
