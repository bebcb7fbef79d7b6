"""Training: the step, the loop, objectives, averages of the weights, logs and interruptions."""
