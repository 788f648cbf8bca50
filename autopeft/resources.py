"""Finds and reads the YAML files that the project ships: search spaces and profiles.

They live once, at the repository root; a wheel carries them inside the package.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, TypeVar

from autopeft.errors import InvalidInputError

T = TypeVar("T")

# msgspec and yaml are imported where they are used: the tracing core runs where only the training stack is installed.
_PACKAGE = Path(__file__).parent


@functools.cache
def resource_folder(name: str) -> Path:
    """Returns the folder ``name`` ("search_spaces", "profiles/hardware", ...) of the source tree or the wheel."""
    for root in (_PACKAGE / "_resources", _PACKAGE.parent):
        folder = root / name
        if folder.is_dir():
            return folder
    raise InvalidInputError(
        f"this installation of autopeft lacks its folder {name!r}; reinstall it: pip install --force-reinstall autopeft"
    )


def cache_folder() -> Path:
    """Returns where converted models are kept between runs: ``AUTOPEFT_CACHE``, else the user's cache folder."""
    named = os.environ.get("AUTOPEFT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopeft"


def plugin_folders() -> tuple[Path, ...]:
    """Returns the folders named by the environment variable ``AUTOPEFT_PLUGINS``, which adds methods to the registry.

    Raises:
        InvalidInputError: if one of them does not exist.
    """
    folders = tuple(Path(part) for part in os.environ.get("AUTOPEFT_PLUGINS", "").split(os.pathsep) if part)
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInputError(f"AUTOPEFT_PLUGINS names {folder}, which is no folder")
    return folders


def yaml_files(folder: str) -> dict[str, Path]:
    """Returns every YAML file of a resource folder by its name without ending, in alphabetical order."""
    return {path.stem: path for path in sorted(resource_folder(folder).glob("*.yaml"))}


def read_yaml(path: Path) -> Any:
    """Returns the content of a YAML file.

    Raises:
        InvalidInputError: naming the file and the line, if it cannot be read or parsed.
    """
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        _refuse_repeated_keys(root)
        return None if root is None else loader.construct_document(root)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: {error.reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InvalidInputError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}") from error


def _refuse_repeated_keys(root: Any) -> None:
    """Checks the mappings of a YAML document, of whose equal keys PyYAML takes the last in silence.

    Raises:
        MarkedYAMLError: naming the key and its line.
    """
    import yaml

    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias, which may stand inside of what it names
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                    )
                keys.add(str(key.value))
                waiting.append(value)


def read_record(path: Path, record_type: type[T]) -> T:
    """Returns a YAML file as a dataclass; unknown and missing keys and wrong types are errors that name the file."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} must hold a mapping, not {type(content).__name__}")
    return to_record(content, record_type, str(path))


def to_record(content: dict[str, Any], record_type: type[T], where: str) -> T:
    """Returns a mapping as a dataclass, checked; ``where`` names its origin in errors."""
    import msgspec

    known = set(getattr(record_type, "__dataclass_fields__", {}))
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise InvalidInputError(f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(content, record_type)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{where}: {error}") from error
