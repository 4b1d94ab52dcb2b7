"""Training a detector: the plan of its choices, the step, the run made of steps, and the experiments made of runs."""
