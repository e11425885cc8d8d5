"""Which samples are in which global batch, and what follows from that."""
