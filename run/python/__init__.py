"""What is done from Python: `load_run`, `train`, `Trainer`."""
