"""Which items a training step sees, and in which process."""
