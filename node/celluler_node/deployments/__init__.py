"""Names that stand for versions of models, with replicas at peers."""
