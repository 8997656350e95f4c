"""How a request is written: query, JSON or tensors. Knows no fields' meaning."""
