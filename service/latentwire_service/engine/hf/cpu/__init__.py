"""Speed on CPUs: packed products, attention in C, and process settings."""
