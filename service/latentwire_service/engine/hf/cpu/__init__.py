"""What makes the runner fast on CPUs: packed products, attention in C, process settings."""
