def comparison_context(folders):
    raise NotImplementedError
