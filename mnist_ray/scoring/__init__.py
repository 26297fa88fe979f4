"""The fan-out: Ray actors that score units of work, and the dispatch of the units to them.

In come a model and a `Source`; out come committed parts and one tally of all images. Knows nothing of training or the
command line.
"""
