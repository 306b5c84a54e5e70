"""One module for each command of ``f2i``. A command parses its options, calls one typed function and prints what it returned."""
