"""One module a format. They are imported by `mnist_ray.sources.open_source` only when their format turns up."""
