"""The two engines that compute a classifier: OpenVINO, once it is converted, and TensorFlow, for the rest.

In come a classifier and an execution (`base.py`); out comes a function from a batch of images to outputs and
probabilities, which `models/inference.py` calls. Knows nothing of Ray, of files and of where images come from.
"""
