"""Figures that compare two images or two tensors."""
