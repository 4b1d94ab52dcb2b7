"""Networks, and the checkpoints that hold them. Tensors in, tensors out."""
