"""Videos and annotations in, batches on the device out; and the data set that the project renders for itself."""
