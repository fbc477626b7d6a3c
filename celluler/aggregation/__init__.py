"""Robust aggregation in integers: the wire form of an update, the rules, the hash of a part.

NumPy and BLAKE3 only. Every result is the same bit for bit on any machine, in any order, on any number of threads,
so that a reducer's work is checked by comparing bytes. Knows nothing of peers' names, of networks or of models.
"""
