"""Everything with a file, a flag or a process in it: configurations, data, training, sampling, scoring."""
