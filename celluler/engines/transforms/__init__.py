"""Transforms at work, in a worker: a model between what stands before and after it."""
