"""The Triton kernels, one module each, named after its kernel.  `grid` beside it says how many programs run."""
