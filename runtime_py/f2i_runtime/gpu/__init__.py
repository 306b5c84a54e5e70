"""A GPU on this machine: its driver, or software ones that are fetched once, and LiteRT's GPU delegate in a child process."""
