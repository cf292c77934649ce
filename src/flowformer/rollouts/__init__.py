"""Episodes in an environment, acted by a trained decision model."""
