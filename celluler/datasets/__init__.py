"""Datasets: what their author signs about one, how it is dealt out to peers, and what its quality is in figures.

Stands on `models` for names and versions, which datasets share. Knows no torch, and reads no file of a stranger: that
is the worker's.
"""
