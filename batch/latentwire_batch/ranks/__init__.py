"""Several processes that share one collection, as `torchrun` starts them."""
