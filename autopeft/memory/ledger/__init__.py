"""A training step written down as tensors that come and go: the model code of transformers, without torch."""
