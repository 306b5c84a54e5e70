"""The engine of a target that only the tests have: torch, one operation after another."""

import numpy as np
import torch


class EagerSession:
    engine = "eager engine of the tests"

    def __init__(self, path, inputs):
        self.names = list(inputs)
        with path.open("rb") as file:
            self.module = torch.export.load(file).module()

    def run(self, inputs):
        with torch.no_grad():
            return self.module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.names)).numpy()

    def close(self):
        del self.module


def open_session(path, *, component, inputs, accelerator="cpu", threads=0):
    return EagerSession(path, inputs)
