"""The tracing core: runs one training step on fake tensors and books every storage.

It imports nothing but the standard library, the training stack and this package's ``engine``, ``methods`` and
``specs``, which need no more either, so that it runs in an environment where autopeft is not installed
(``autopeft.memory.environment``), under transformers 4.48 to 5.x and peft 0.13 to 0.21.
"""
