"""Run and judge an F2I bundle: manifest, photos, tiles, engines, metrics, validation.

Importing this package loads no engine: each engine's library is imported inside its own ``run_<target>.py``, when a session is opened.
"""

__version__ = "0.1.0"
