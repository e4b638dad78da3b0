"""Training: stages, the Trainer, the cache of frozen encoders."""
