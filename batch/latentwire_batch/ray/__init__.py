"""Collecting on a Ray cluster: replicas are Ray actors that run the engine in their own process.

Ray places the actors, restarts them and moves the rows; which rows are done is in our own logs. Ray
itself is imported only where a cluster is used, because it is an extra.
"""
