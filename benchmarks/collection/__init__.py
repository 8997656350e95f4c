"""What a collection costs, over stub replicas that are not its limit."""
