"""What a job may ask of a worker at most: one place for the spec and for whoever runs it. Imports nothing."""

MAX_INNER_STEPS = 100_000
MAX_BATCH = 65_536
