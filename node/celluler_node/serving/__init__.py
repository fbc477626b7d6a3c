"""Models at work in workers: loading, batching, writing, and what is remembered of answers."""
