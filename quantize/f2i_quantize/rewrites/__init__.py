"""Exact rewrites of the model for phones, and the capture of programs."""
