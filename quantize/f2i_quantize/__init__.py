"""The model family, checkpoints, distillation, quantization recipes and calibration."""
