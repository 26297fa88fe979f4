"""The steps of a job, as `pipeline.py` calls them: each runs one stage with its bar and its progress record.

In come a configuration and what the step before gave; out comes what the next step needs. Knows nothing of the command
line.
"""
