"""Local Ray clusters, each in a process of its own that ends with the test."""
