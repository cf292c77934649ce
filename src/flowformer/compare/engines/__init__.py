"""What does the runs of a comparison: workers of this machine, or a cluster's, by one interface."""
