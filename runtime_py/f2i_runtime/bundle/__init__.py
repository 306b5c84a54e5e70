"""A bundle: its manifest as records, and its files on disk."""
