"""Where people keep their runs: TensorBoard's event files, and a run on an MLflow server.

In come the epochs and metrics that a run's folder holds; out comes the same elsewhere. Whatever is there already, from
this attempt or an earlier one, is not written twice. Knows nothing of Ray, TensorFlow, or how a run is trained.
"""
