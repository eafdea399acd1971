"""HOW the layer is cut into kernels: plans as frozen data.  spec -> plan -> emit"""
