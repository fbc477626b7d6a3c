"""Peers that lie, as objects: the same ones attack a simulation and a real swarm. None of it ships."""
