"""The operations in C++, for tensors in main memory. `src` is compiled into `native` if there is a compiler.

arguments.py turns tensors into what `native` takes. The other files have a function for each operation, with the
arguments of those in `triton`, and the operations choose between the two.
"""
