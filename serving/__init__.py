"""The endpoint: a KServe predictor over REST and gRPC, an upload route and a page. Start it with `python -m serving`.

Research software: no output is a diagnosis.
"""
