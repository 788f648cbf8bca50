"""The libraries whose code the closed form was read from."""

from __future__ import annotations

REFERENCE_VERSIONS = {"transformers": "5.23", "peft": "0.21", "trl": "1.16", "bitsandbytes": "0.50"}
"""Library -> version (major and minor) that the closed form's figures hold for; constraints/dev.txt pins the same."""
