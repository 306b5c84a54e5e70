"""One file for each engine that computes an artifact, and what they share. Importing this package imports no engine."""
