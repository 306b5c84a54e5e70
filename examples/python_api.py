"""The Python API in ten lines: export a model, upscale an array and a file, and prove what came of it.

python examples/python_api.py [CHECKPOINT] [FOLDER]
"""

import sys
from pathlib import Path

import skimage.data

import f2i

checkpoint, folder = sys.argv[1:] or ["nano", "api-example"]
bundle = f2i.export(checkpoint, Path(folder) / "bundle", targets=["tflite"], precisions=["fp16"])
with f2i.open_engine(bundle) as engine:
    big = f2i.upscale(engine, skimage.data.chelsea())  # uint8 or float32 (H, W, 3) in, the same out, twice as large
    f2i.upscale_file(engine, Path(skimage.data.__file__).parent / "coffee.png", Path(folder) / "coffee_x2.jpg")
report = f2i.validate(bundle)
print(f"chelsea {big.shape} {big.dtype} by {engine.engine}; gates {'passed' if report.passed else 'failed'}")
