"""Datasets of latents: tasks in, replicas asked, Parquet and Arrow files out."""
