"""One file per --mode: what the command prints and writes. No command imports another."""
