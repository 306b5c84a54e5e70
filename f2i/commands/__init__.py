"""The commands of ``f2i``."""
