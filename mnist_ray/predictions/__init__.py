"""An output on disk: its plan, its parts and quarantine, the tallies, and the check that nothing is missing.

In come predictions and probabilities of a unit of work; out come Parquet parts, each committed in one step, and a
manifest that anyone can verify offline. Knows nothing of Ray or Keras.
"""
