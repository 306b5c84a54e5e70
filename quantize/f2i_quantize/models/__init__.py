"""The model family: configuration, the parts that are ours, the components that are exported, and the presets.

Importing this package loads no torch; its modules do.
"""
