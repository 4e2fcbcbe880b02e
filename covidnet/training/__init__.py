"""The loop that trains baselines and found networks: resumable to the bit, in one process or several, with logs.

`volumes` holds the packed dataset on the device; `train_job` hands a stage to Kubeflow Trainer.
"""
