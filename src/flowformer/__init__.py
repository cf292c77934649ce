"""Flow-Attention: attention with linear cost, exact, for PyTorch."""
