"""`latentwire inspect`: statistics of a stored dataset, shown on a terminal or as HTML."""
