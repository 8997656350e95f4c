"""Sending rows to replicas: concurrency, retries, interrupts, progress.

Knows neither files nor formats: rows come from an iterator and results go to a `Store`.
"""
