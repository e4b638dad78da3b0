"""What a model says, and how good it is: predictions, metrics, intervals, paired tests."""
