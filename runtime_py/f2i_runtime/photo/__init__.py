"""Photos: reading, writing, colour, resampling, and the sample photos."""
