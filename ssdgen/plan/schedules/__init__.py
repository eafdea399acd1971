"""Kernels of each schedule, one file per kernel shape.  spec.chunk_graph -> plan.Kernel"""
