"""Reaching a Ray: connect to a cluster or start a local one, submit and follow jobs, look at nodes, end in order.

In come an address and the CPUs that are asked for; out come a connection for the time of a `with` block, the exit
code of a job, and what nodes tell of themselves. Knows nothing of images or models.
"""
