"""Robots: what their numbers mean, and the statistics that scale them."""
