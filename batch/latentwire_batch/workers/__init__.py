"""Further processes that receive rows for one `collect`, when one core is not enough."""
