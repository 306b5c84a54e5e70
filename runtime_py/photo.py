"""Photos in and out: ``PhotoReader`` and ``PhotoWriter``.

with PhotoReader(photo) as reader, PhotoWriter(out, 2 * reader.width, 2 * reader.height, like=reader) as writer:
    for y, x, block in upscale_blocks(reader.rows, plan, upscale_tile):
        writer.write_block(y, x, block)
"""

from runtime_py.photo_read import PhotoReader
from runtime_py.photo_write import PhotoWriter

__all__ = ["PhotoReader", "PhotoWriter"]
