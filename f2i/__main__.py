"""``python -m f2i``: the same as ``f2i``."""

from f2i.cli import main

if __name__ == "__main__":
    main()
