"""From a whole configuration to the objects that a command works with."""
