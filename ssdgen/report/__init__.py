"""One page about what was tuned: what it gained, why, and whether it is right.  records, studies -> HTML"""
