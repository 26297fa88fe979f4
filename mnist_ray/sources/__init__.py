"""What users have, as batches of images: one module a format, and one that chooses among them.

In comes what `--data` or INPUT names; out comes a `Source`, which gives rows of `uint8` images with ids and labels, and
names each row that it cannot read. Knows nothing of Ray or TensorFlow.
"""
