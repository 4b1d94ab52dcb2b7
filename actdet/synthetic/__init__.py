"""The data set that the project renders for itself, and the demonstration that trains on it."""
