"""Data-parallel training: what a train worker does, and what the driver asks of Ray Train.

In come shards and a configuration; out come checkpoints and finally a model in the run's folder. Knows nothing of
scoring or the command line.
"""
