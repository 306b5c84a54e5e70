"""Hexagon, the NPU of Snapdragon chips: the compiler that comes with ONNX Runtime's QNN provider, what it is given, and what it says."""
