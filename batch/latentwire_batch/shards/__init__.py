"""Collections that are divided into shards, each collected on its own, and their merging."""
