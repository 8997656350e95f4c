"""Logs, metrics and spans. Knows no web framework."""
