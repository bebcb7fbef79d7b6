"""What `--mode` does with a system, one file per mode; it goes through the commands of one run."""
