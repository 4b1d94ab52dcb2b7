"""The operations in C++, for tensors in main memory. `src` is compiled into `native`, where there is a compiler.

`arguments.py` turns tensors into what `native` takes; the other files have the functions that operations choose, one
for each, with the arguments of the Triton ones.
"""
