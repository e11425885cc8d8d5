"""What other readers of WebDataset want beside the shards. No shard is written or changed."""
