"""What a job may ask for at most: one place for the spec and for whoever runs it. Imports nothing."""

MAX_ROUNDS = 1024
MAX_INNER_STEPS = 100_000
MAX_BATCH = 65_536
