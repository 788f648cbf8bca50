"""Profiles a model from its configuration and file headers: no torch, no GPU, no weights.

``parameter_count`` is that of the model which is trained: for causal language models the whole model with its head;
for encoders the base inside ``AutoModelForSequenceClassification``, without the classification head.
"""

from __future__ import annotations

import datetime
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._architectures import supported_model_types
from autopeft.profiling._hub_model import read_hub
from autopeft.profiling._model_folder import read_local
from autopeft.profiling._spec import Origin, build_spec
from autopeft.profiling._targets import adapted_layers, resolve_target_modules
from autopeft.resources import read_record, yaml_files
from autopeft.specs import ModelSpec

__all__ = [
    "ModelProfile",
    "adapted_layers",
    "load_model",
    "model_names",
    "read_profile",
    "resolve_target_modules",
    "spec_from_config",
    "supported_model_types",
]

_PROFILES = "profiles/models"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./+-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """One file of profiles/models: facts that let ``suggest`` work with no download.

    Attributes:
        hub_id: the model on the hub.
        source: where the facts were read; "recalled, unverified" for what was not.
        checked: date of that.
        config: the essentials of config.json.
        parameter_count: as published, or read in a weights header; None where neither was seen.
        parameter_count_source: where that count was read.
    """

    hub_id: str
    source: str
    checked: datetime.date
    config: dict[str, Any]
    parameter_count: int | None = None
    parameter_count_source: str | None = None
    has_chat_template: bool = False
    license: str | None = None


def model_names() -> tuple[str, ...]:
    """Returns the names of the model profiles that the project ships, in alphabetical order."""
    return tuple(yaml_files(_PROFILES))


def load_model(text: str) -> ModelSpec:
    """Returns the spec of a model: an existing local path, else a profile's name, else a hub id.

    Args:
        text: a folder with config.json, a ``.gguf`` file, a folder with exactly one, a name of :func:`model_names`,
            or ``organization/name`` on the hub, at its newest commit or ``organization/name@revision``.

    Raises:
        ModelError: one sentence: what is missing, broken or not supported, and what is understood.
    """
    path = Path(text).expanduser()
    if text and path.exists():
        return read_local(path)
    if text in yaml_files(_PROFILES):
        return _from_profile(text)
    if _looks_like_path(text):
        raise ModelError(f"no such folder or file: {text}")
    if _HUB_ID.fullmatch(text):
        return read_hub(text)
    raise ModelError(_unknown(text))


def read_profile(name: str) -> ModelProfile:
    """Returns one file of profiles/models.

    Raises:
        InvalidInputError: if the file has unknown or missing keys.
    """
    return read_record(yaml_files(_PROFILES)[name], ModelProfile)


def spec_from_config(config: dict[str, Any], *, id: str, origin: Origin | None = None) -> ModelSpec:  # noqa: A002
    """Returns the spec that a config.json alone implies.

    Args:
        config: the content of config.json.
        id: the model's name in the spec.
        origin: what else is known; None if nothing is.

    Raises:
        ModelError: if the model type is unknown or a field is wrong.
    """
    return build_spec(config, id, origin or Origin())


def _from_profile(name: str) -> ModelSpec:
    profile = read_profile(name)
    origin = Origin(
        where=f"profile {name}",
        parameter_count=profile.parameter_count,
        has_chat_template=profile.has_chat_template,
        license=profile.license,
    )
    return build_spec(profile.config, name, origin)


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith(("/", "./", "../", "~"))
        or text.endswith((".gguf", "/"))
        or text.partition("@")[0].count("/") > 1
    )


def _unknown(text: str) -> str:
    names = model_names()
    close = difflib.get_close_matches(text.lower(), names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"unknown model {text!r}: give a folder with config.json, a .gguf file, a hub id (organization/name) or one "
        f"of the profiles {', '.join(names)}.{hint}"
    )
