"""The finished dataset's files: schema, writers, manifest, card, and their readers."""
