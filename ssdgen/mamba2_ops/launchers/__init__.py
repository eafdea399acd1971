"""Which kernels a call launches, in which order and on which buffers."""
