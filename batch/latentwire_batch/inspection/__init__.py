"""`latentwire inspect`: statistics of a stored dataset, on a terminal or as HTML."""
