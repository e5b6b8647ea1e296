"""The HTTP port of a node: what monitors, load balancers and people ask of it."""
