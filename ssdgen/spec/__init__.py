"""WHAT is computed: the SSD layer as symbols.  sympy only; neither torch nor a GPU.  spec -> plan"""
