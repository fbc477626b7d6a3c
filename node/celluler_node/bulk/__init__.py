"""Bulk transfer: chunks over TLS 1.3 beside libp2p, by a process of its own.

`service` and `mover` are the node's side; `process` the other, with `lobby` (who comes in), `server` (who is served)
and `transfer` (what is fetched) over `tls` and `wire`; `words` is what both sides know.
Importing this package imports none of them: the process must not carry trio.
"""
