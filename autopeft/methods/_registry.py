"""Finds the methods: a method is found, never listed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import autopeft.methods
from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.methods._base import PeftMethod
from autopeft.resources import plugin_folders


@functools.cache
def registry() -> dict[str, PeftMethod]:
    """Returns every method by name, in alphabetical order."""
    modules = [
        importlib.import_module(f"autopeft.methods.{found.name}")
        for found in pkgutil.iter_modules(autopeft.methods.__path__)
        if not found.name.startswith("_")
    ]
    for folder in plugin_folders():
        modules += [_load(path) for path in sorted((folder / "methods").glob("[!_]*.py"))]
    methods: dict[str, PeftMethod] = {}
    for module in modules:
        method = _method_of(module)
        if method.name in methods:
            raise InvalidInputError(f"{module.__file__}: a method named {method.name!r} exists already; rename it")
        methods[method.name] = method
    return dict(sorted(methods.items()))


def method_names() -> tuple[str, ...]:
    """Returns the names of all methods, in alphabetical order."""
    return tuple(registry())


def get_method(name: str) -> PeftMethod:
    """Returns a method by name.

    Raises:
        UnknownNameError: listing the known ones and the closest.
    """
    try:
        return registry()[name]
    except KeyError:
        raise UnknownNameError("PEFT method", name, registry()) from None


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"autopeft_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidInputError(
            f"the plugin method {path} cannot be imported ({type(error).__name__}: {error}); mend it, or take its "
            "folder out of AUTOPEFT_PLUGINS"
        ) from error
    return module


def _method_of(module: ModuleType) -> PeftMethod:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, PeftMethod) and value.__module__ == module.__name__
    ]
    name = module.__name__.rpartition(".")[2].removeprefix("autopeft_plugin_")
    if len(found) != 1 or found[0].name != name:
        raise InvalidInputError(f"{module.__file__} must define exactly one PeftMethod, with name = {name!r}")
    method: PeftMethod = found[0]()
    return method
