"""Small ``.tflite`` files for the GPU delegate, and the machines that can run it."""

import platform
import sys

import pytest
import torch

HAS_DRIVER = (sys.platform, platform.machine()) == ("linux", "x86_64")
needs_driver = pytest.mark.skipif(not HAS_DRIVER, reason="the pinned GPU drivers are for Linux on x86-64")


class FiveAxes(torch.nn.Module):
    """A pixel shuffle by two, spelled with a tensor of five axes. Input (1, 4, 8, 8)."""

    def forward(self, x):
        return x.reshape(2, 2, 1, 8, 8).permute(2, 3, 0, 4, 1).reshape(1, 1, 16, 16) + 1


class Squares(torch.nn.Module):
    """The root mean square over channels, whose squares leave half precision where ``scale`` is 1. Input (1, 4, 8, 8)."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        small = x * self.scale
        return x * torch.rsqrt((small * small).mean(1, keepdim=True))


def convert(module, path, shape=(1, 4, 8, 8)):
    """Write a module as ``.tflite``."""
    import litert_torch

    litert_torch.convert(module.eval(), (torch.zeros(shape),)).export(str(path))
    return path
