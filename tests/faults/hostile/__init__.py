"""Files from strangers, given to the real commands."""
