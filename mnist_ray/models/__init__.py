"""Keras classifiers: build one, inspect it, save it, vet and load it safely, compute with it.

In come a `Recipe`, or a user's `.keras` file, and uint8 images; out come logits and probabilities. Knows nothing of
Ray.
"""
