"""What a machine can do at best: matrix products and memory traffic, measured, so that a latency can be held against it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from f2i_bench.core.protocol import Limit

SIDE = 1536
"""The side of the square matrices: large enough to be bound by arithmetic, small enough to be quick."""
CHANNELS, IMAGE = 256, 66
"""The channels and the side of the 3 x 3 convolution. It measures the same arithmetic by oneDNN, because torch's matrix product (MKL) does not use
the widest instructions of every processor.
"""
STREAM_BYTES = 256 << 20
"""The bytes to copy: more than any cache holds."""


def measure_limit(threads: int, seconds: float) -> Limit:
    """The machine's peak at so many threads: fp32 and int8 matrix products by torch, and a copy for the bandwidth.

    Each is the best of the repeats that ``seconds`` allow, at least one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        operations = 2 * SIDE**3
        left, right, result = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)
        product = operations / _best(lambda: torch.mm(left, right, out=result), seconds / 2)
        image, kernel = torch.rand(1, CHANNELS, IMAGE, IMAGE), torch.rand(CHANNELS, CHANNELS, 3, 3)
        work = 2 * CHANNELS**2 * 9 * (IMAGE - 2) ** 2
        convolution = work / _best(lambda: torch.nn.functional.conv2d(image, kernel), seconds / 2)
        fp32 = max(product, convolution)
        left8, right8 = (torch.randint(-128, 127, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
        int8 = operations / _best(lambda: torch._int_mm(left8, right8), seconds)
        source, copy = torch.ones(STREAM_BYTES, dtype=torch.uint8), torch.empty(STREAM_BYTES, dtype=torch.uint8)
        bandwidth = 2 * STREAM_BYTES / _best(lambda: copy.copy_(source), seconds)
    finally:
        torch.set_num_threads(before)
    return Limit(threads=threads, fp32_flops=fp32, int8_ops=int8, bandwidth=bandwidth)


def _best(work: Callable[[], object], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
