"""The report's detector: a backbone and a Transformer predict a set of actions with boxes for each clip."""
