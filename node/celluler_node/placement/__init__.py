"""Whom to ask: a choice among the peers that serve, and requests that outlive a peer."""
