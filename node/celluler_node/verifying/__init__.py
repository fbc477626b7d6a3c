"""Verification from outside: models with their transcripts, evidence, answers."""
