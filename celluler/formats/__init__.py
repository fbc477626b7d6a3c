"""Other people's files: told apart by their bytes, read strictly, and turned into bodies and weights of ours.

Nothing here runs what a file holds. Every length is held against the size of the file, and every count against a
limit, before anything is allocated for it. Knows no torch; `celluler.engines.formats` does what needs one.
"""
