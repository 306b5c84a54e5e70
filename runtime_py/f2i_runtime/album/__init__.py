"""Many photos in one command, each upscaled once."""
