"""Post-training quantization: recipes, calibration, the QDQ graph, and fine-tuning of it."""
