"""SIGKILL and power loss at any moment: what was finished is whole, and the same command goes on."""
