"""Files of a model: where they are, what kind they are, and whether they are complete."""
