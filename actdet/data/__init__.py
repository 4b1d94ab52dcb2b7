"""From data sets to batches on the device: annotations, clips, splits, caches, augmentation, re-encoding."""
