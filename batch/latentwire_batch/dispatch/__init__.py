"""Sending rows to replicas: concurrency, retries, interrupts, progress. Knows no files."""
