"""Experiments on episodes: offline reinforcement learning."""
