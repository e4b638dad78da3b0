"""Published checkpoints of others → our models, strictly: every tensor finds its place or is named with a reason."""
