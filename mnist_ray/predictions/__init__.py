"""An output on disk: its plan, parts, quarantine, tallies and manifest, replacing it, and verifying it offline.

In come the predictions and probabilities of a unit of work; out come Parquet parts, each committed in one step, and a
manifest that anyone can check. Knows nothing of Ray or Keras.
"""
