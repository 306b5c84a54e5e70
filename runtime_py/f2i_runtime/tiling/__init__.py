"""Cutting a photo into tiles, blending them again, and judging the seams."""
