"""Small ``.tflite`` graphs for the NPU's compiler, made by LiteRT's own converter."""

import litert_torch
import torch
from torch import nn


class Convolutions(nn.Module):
    """Two convolutions with a ReLU between them, and after them an op that the NPU lacks where that is wanted."""

    def __init__(self, refused):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.refused = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), refused

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        return torch.atan2(y, y + 1.0) * 2.0 if self.refused else y


def convolutions(path, refused=False):
    """Write the graph for an input (1, 3, 32, 32); returns its path."""
    litert_torch.convert(Convolutions(refused).eval(), (torch.rand(1, 3, 32, 32),)).export(str(path))
    return path
