"""Training a detector: the step, the run, and the experiments made of runs."""
