"""Fine-tuning: a network that stands on disk learns other classes, with most of its layers frozen."""
