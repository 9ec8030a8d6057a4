"""Fine-tuning on ``transformers.Trainer`` and the real data the package measures itself on."""
