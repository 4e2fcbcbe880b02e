"""A bundle and scans in, answers out, without torch: engines, the choice among them, maps, many scans at once.

`covidnet predict` and the endpoint both stand on it.
"""
