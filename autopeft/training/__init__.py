"""Runs trainings: a worker process on transformers, trl and peft, and a fake runner that needs none of them."""
