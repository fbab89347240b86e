"""Images to shards, and shards to batches in an order that depends on nothing but the seed and the step."""
