"""Training on series whose labels are numbers to predict."""
