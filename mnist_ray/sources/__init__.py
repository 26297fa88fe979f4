"""What users have, as batches of images: a module for each format, and one that recognizes them (`open.py`).

In comes what `--data` or INPUT names; out comes a `Source`, which returns rows of `uint8` images with ids and labels,
and names each row that it cannot read. Knows nothing of Ray or TensorFlow.
"""
