"""A training run at one member: preparation, rounds, publication. The decisions live in `celluler.learning`."""
