"""The two engines that compute a classifier: OpenVINO, converted once, without TensorFlow; and TensorFlow, for the rest.

`base.py` says what an engine is; `models/inference.py` asks either in the same way.
"""
