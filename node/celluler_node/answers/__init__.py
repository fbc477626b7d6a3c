"""What a person may ask of a node, answered: the parts of `Operations`, one module a subject."""
