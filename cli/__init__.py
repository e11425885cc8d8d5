"""The `dinowds` command: each file parses one command, calls one function of dinowds, and prints."""
