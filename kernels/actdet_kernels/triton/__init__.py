"""The operations as Triton kernels: a file for each with its device functions, its kernels and how they are launched.

Only `actdet_kernels.backend` and code that runs a kernel import this package, so those who run none need no Triton.
"""
