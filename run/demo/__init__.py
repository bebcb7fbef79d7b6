"""A local web page on trained runs: drawing samples, filling masks in, scoring images."""
