"""Networks, and the checkpoints that hold them. Tensors go in, tensors come out; files are only checkpoints."""
