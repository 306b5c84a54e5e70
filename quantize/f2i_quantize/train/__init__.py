"""Training: photos, losses, distillation, resumable state."""
