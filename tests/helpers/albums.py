"""Small photos for albums, what an album leaves behind, and the command that upscales one."""

import subprocess
from pathlib import Path

import numpy as np
from f2i_runtime.album.album_records import DONE, Record, add_record, stamp_of
from PIL import Image
from repository import F2I


def photo(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 48, 3), shade, np.uint8) + np.arange(48, dtype=np.uint8)[:, None]).save(path, "PNG")
    return path


def files(folder):
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file() and p.name != DONE}


def pretend(plan, out):
    """What an album leaves behind, without an engine: each output and its two lines."""
    for source in plan.sources:
        record = Record(source.location, stamp_of(Path(source.location)), source.output, None, "s")
        output = out / source.output
        output.parent.mkdir(parents=True, exist_ok=True)
        add_record(out, record)
        output.write_bytes(b"output of " + source.location.encode())
        add_record(out, Record(record.source, record.stamp, record.output, output.stat().st_size, "s"), 1.0)


def run(bundle, *arguments):
    command = [F2I, "run", str(bundle), *map(str, arguments), "--target", "onnx", "--precision", "fp32", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
