"""Models split by layers over peers: stages served, and lines of them that answer."""
