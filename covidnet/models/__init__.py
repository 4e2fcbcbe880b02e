"""Networks as data: the paper's baselines, the supernet of the search, CovidNet3D rebuilt from its genotype, and their cost.

`saved` writes and reads a trained one with the description that it is rebuilt from.
"""
