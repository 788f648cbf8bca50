"""What one training step is made of: load or build the model, inject the adapter, loss, optimizer.

``autopeft.training`` runs it on real tensors, ``autopeft.memory.trace`` on fake ones, so the two cannot drift apart.
"""
