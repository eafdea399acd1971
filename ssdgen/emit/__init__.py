"""Plan -> source text; pure: no torch, no files.  plan -> emit -> mamba2_ops"""
