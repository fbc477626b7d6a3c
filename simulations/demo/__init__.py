"""`make demo`: the main job for real, on five node processes, one of which lies."""
