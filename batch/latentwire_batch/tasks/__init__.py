"""The input: reading records from files, and making rows and results of them."""
