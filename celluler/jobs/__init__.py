"""Jobs: what a person may ask the swarm to do, and the states a job goes through."""
