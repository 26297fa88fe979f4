"""A run's folder: what lies where, the one driver that may write to it, and how far the run is.

In come a configuration and its fingerprint; out come a folder that is new, resumed or finished, and `progress.json`.
Knows nothing of images or models.
"""
