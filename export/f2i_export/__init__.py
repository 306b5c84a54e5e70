"""Rewrite the graph for phones, lower it to each target, write the bundle."""
