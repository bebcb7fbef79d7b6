"""Everything with a file, a flag or a process in it: configurations, data, training, sampling, scoring."""

if __name__ == "run":  # in a checkout: no second copy of the files
    __path__ = []
