"""The operations as Triton kernels: one file for each, its device functions, its kernels and how they are launched.

Only `actdet_kernels.backend` and what runs a kernel import this, so that whoever runs none needs no Triton.
"""
