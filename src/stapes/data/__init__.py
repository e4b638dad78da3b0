"""Audio in, batches out: manifests, checks, prompts, mixture, augmentation."""
