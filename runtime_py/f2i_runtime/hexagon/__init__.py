"""Hexagon, the NPU of Snapdragon chips: its chips, the wheel with Qualcomm's compiler and simulator, and the simulator as an engine."""
