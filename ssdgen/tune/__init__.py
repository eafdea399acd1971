"""The search for the best config: on a GPU by measuring, without one by compiling.  plan.space -> pack.Record"""
