"""Datasets of latents: tasks go in, replicas plan them, Parquet and Arrow files come out."""
