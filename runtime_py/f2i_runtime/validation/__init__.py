"""A bundle compared with its full-precision reference."""
