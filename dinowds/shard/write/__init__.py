"""Pass 2: shards, their rows, and the index."""
