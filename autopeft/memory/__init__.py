"""Predicts memory and time of a training step: by closed form, or by tracing the real step on fake tensors."""
