"""Generating text as decisions: what is drawn from logits, where an answer stops, and whose turn it is.

Pure functions and state machines; time is an argument. Knows no torch, no sockets and no worker: the model's half
stands in `celluler.engines.generation`.
"""
