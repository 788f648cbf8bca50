"""The registry of methods: every module of this package that does not start with an underscore holds one.

A plugin folder named by the environment variable ``AUTOPEFT_PLUGINS`` adds more: ``methods/<name>.py`` beside
``search_spaces/<name>.yaml``.
"""

from autopeft.methods._base import AdapterSpec, LoadedWeights, MethodContext, PeftMethod
from autopeft.methods._registry import get_method, method_names, registry

__all__ = ["AdapterSpec", "LoadedWeights", "MethodContext", "PeftMethod", "get_method", "method_names", "registry"]
