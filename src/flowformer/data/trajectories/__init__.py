"""Episodes for offline reinforcement learning: readers, preprocessing and batches."""
