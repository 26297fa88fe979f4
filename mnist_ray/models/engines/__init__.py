"""The two engines that compute a classifier: OpenVINO, once it is converted, and TensorFlow, for the rest.

`base.py` says what an engine is; `models/inference.py` asks either in the same way.
"""
