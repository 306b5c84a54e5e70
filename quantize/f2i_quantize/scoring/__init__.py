"""Figures of a model on benchmark sets."""
