"""What the commands that fit bridges and compressors share: samples, training, state, progress."""
