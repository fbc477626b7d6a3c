"""Members that lie in the protocol, whatever they train: each an object that leads an honest run by the hand."""
