"""Differentiable architecture search (DNAS) over the paper's space, under a budget, watched for collapse.

Read `run` for the whole, `dnas` for the two updates, `gumbel` for the estimator.
"""
