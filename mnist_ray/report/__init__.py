"""The HTML report of a finished run or output, made from its files alone.

In comes a folder with `metrics.json`; out comes one self-contained `report.html`. Knows nothing of Ray or TensorFlow.
"""
