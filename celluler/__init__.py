"""celluler: a peer-to-peer network that trains, stores and serves AI models with no server in the middle."""

__version__ = "0.1.0"
