"""What runs under the emitted kernels: checks, choice of a config, the PyTorch path, the public call.

A leaf: torch, triton and the standard library only, relative imports only.  `emit.package` copies these files unchanged
into `mamba2_ops`, whose own `__init__` exports the public names.
"""
