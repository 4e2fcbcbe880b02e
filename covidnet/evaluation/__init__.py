"""What a trained model is worth: figures with intervals by patient, paired tests, calibration, maps and the report.

`run` is the whole of the stage; the test split is read there, once, under `seal`.
"""
