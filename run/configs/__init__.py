"""One file per experiment, each a `get_config()` over base.py."""
