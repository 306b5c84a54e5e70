"""Comparing a package with the program it was converted from, and rules of the Neural Engine."""
