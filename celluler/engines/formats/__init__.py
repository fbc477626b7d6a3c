"""Models in and out of other formats, as far as torch is needed for it. Runs in a confined worker of the author's."""
