"""What the tests of photos share: saving, reading and enlarging them through the reader and the writer."""

import numpy as np
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.writer import Encoding, PhotoWriter
from PIL import Image


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def read(path, step=50):
    with PhotoReader(path) as reader:
        return np.concatenate([reader.rows(y, min(y + step, reader.height)) for y in range(0, reader.height, step)])


def copy(source, out, scale=1, **options):
    """Nearest enlargement through reader and writer; returns the warnings of both."""
    with PhotoReader(source) as reader:
        with PhotoWriter(out, reader.width * scale, reader.height * scale, like=reader, encoding=Encoding(**options)) as writer:
            for y in range(reader.height):
                writer.write(reader.rows(y, y + 1).repeat(scale, 0).repeat(scale, 1))
        return reader.warnings + writer.warnings


def with_alpha(chelsea):
    alpha = np.zeros(chelsea.shape[:2], np.uint8)
    alpha[:, 200:] = 255
    return np.dstack([chelsea, alpha])
