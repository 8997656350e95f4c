"""The service on a Ray cluster: its engine inside an actor, and its HTTP app as a deployment."""
