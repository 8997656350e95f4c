"""Datasets of latents: tasks go in, replicas plan them, Parquet and Arrow files come out."""

from latentwire_batch.loading import StoredDataset, load

__all__ = ["StoredDataset", "load"]
