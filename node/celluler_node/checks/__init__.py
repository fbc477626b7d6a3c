"""Answers of other peers looked into, and our own ones signed."""
