"""Models and datasets by name: published, resolved, pulled, kept, checked.

The way of a name: `author/name:version` → the author's key → the signed head in the DHT → the signed index of
versions → the signed manifest → the content, each step verified by signature or digest before the next is taken.

    shelf       the manifests kept here, and of what the swarm announces
    resolver    from a name or CID to a verified manifest
    publisher   the names that are ours
    vault       plaintext of the encrypted models we may read
    checks      what can be said of a model's integrity
    repository  all of it together
"""

from celluler_node.repository.held import Held, HeldDataset, name_of
from celluler_node.repository.repository import Repository, root_of, roots_of, small_enough

__all__ = ["Held", "HeldDataset", "Repository", "name_of", "root_of", "roots_of", "small_enough"]
