"""Parquet files whose columns of matrices are encoded page by page, on several threads."""
