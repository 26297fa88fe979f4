"""Reaching a Ray: connect to a cluster or start a local one, submit and follow jobs, end in order on a signal.

In come an address and the CPUs that are asked for; out comes a connection for the time of a `with` block. Knows nothing
of images or models.
"""
