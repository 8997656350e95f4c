"""The output directory: names, locks, durable writes, and the move of final files into place."""
