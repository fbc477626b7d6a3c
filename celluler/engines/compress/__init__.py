"""Models made smaller: rounded, pruned, distilled. A worker does it, and judges each result beside its parent."""
