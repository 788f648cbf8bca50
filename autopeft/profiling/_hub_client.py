"""Asks the Hugging Face hub for files of one model and for the first bytes of its weights.

Everything goes through huggingface_hub, so that HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, the time-outs
(HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT) and the cache hold. Errors name a model, a file, a status or a kind of
error: never an address, which may be signed, and never a header, which may hold the token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 3
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
_BUSY = (429, 500, 502, 503, 504)


class HubFileError(Exception):
    """A file of the hub could not be had; the text says why in one clause."""


class HubFileMissingError(HubFileError):
    """The repository has no such file at this commit."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """One model of the hub at one commit.

    Attributes:
        id: "organization/name".
        commit: its full hash.
    """

    id: str
    commit: str

    def small_file(self, name: str) -> Path | None:
        """Returns a file in huggingface_hub's cache, downloaded at need; None if the repository lacks it.

        Raises:
            HubFileError: if it cannot be downloaded.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.id, name, revision=self.commit)
        if cached is not None:
            return Path(cached) if isinstance(cached, str) else None  # else it is known to be missing
        try:
            return Path(_patiently(lambda: hf_hub_download(self.id, name, revision=self.commit)))
        except HubFileMissingError:
            return None

    def exists(self, name: str) -> bool:
        """Returns whether the repository has a file.

        Raises:
            HubFileError: if the hub does not say.
        """
        try:
            _patiently(lambda: _metadata(self.id, name, self.commit))
        except HubFileMissingError:
            return False
        return True

    def first_bytes(self, name: str, count: int) -> tuple[bytes, int | None]:
        """Returns the first ``count`` bytes of a file, or all if it is shorter, and its size (None if not said).

        Asked for as a range; a server that ignores ranges and sends the whole file is left after ``count`` bytes.

        Raises:
            HubFileMissingError: if the repository lacks it.
            HubFileError: if the hub does not give it.
        """
        return _patiently(lambda: self._streamed(name, count))

    def _streamed(self, name: str, count: int) -> tuple[bytes, int | None]:
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        url = hf_hub_url(self.id, name, revision=self.commit)
        headers = build_hf_headers() | {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        content = bytearray()
        # The client drops the token where a redirect leaves the hub's host.
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= count:
                    break
            return bytes(content[:count]), _whole_size(response)


def find_commit(model_id: str, revision: str | None) -> tuple[str | None, str | None]:
    """Returns the commit that a branch, tag or hash stands for now; or None, and in one clause why the hub is silent.

    Asked before any download, because huggingface_hub retries a failing download for half a minute.
    """
    try:
        commit = _patiently(lambda: _metadata(model_id, "config.json", revision)).commit_hash
    except HubFileMissingError:
        return None, "it has no config.json, so that its layers are unknown"
    except HubFileError as error:
        return None, str(error)
    if commit is None:
        return None, "what answers at HF_ENDPOINT is no hub (it names no commit)"
    return commit, None


def current_config(model_id: str, revision: str | None, commit: str) -> Path:
    """Returns config.json in huggingface_hub's cache, downloaded unless the cache has it at this commit.

    Asked for by the revision and not by the commit, so that the cache remembers what the revision stands for.

    Raises:
        HubFileError: if it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    found = cached_config(model_id, revision)
    if found is not None and found.parent.name == commit:
        return found
    return Path(_patiently(lambda: hf_hub_download(model_id, "config.json", revision=revision)))


def cached_config(model_id: str, revision: str | None) -> Path | None:
    """Returns config.json in huggingface_hub's cache, whose folder's name is the commit; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_id, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _metadata(model_id: str, name: str, revision: str | None) -> Any:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    return get_hf_file_metadata(hf_hub_url(model_id, name, revision=revision), timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _patiently(ask: Callable[[], T]) -> T:
    """Returns the answer, asked for again where the hub is busy (429 and 5xx), at most three times in all.

    Raises:
        HubFileError: saying in one clause why there is none.
    """
    wait = FIRST_WAIT_SECONDS
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except Exception as error:
            status = _status(error)
            if status not in _BUSY or attempt == ATTEMPTS - 1:
                raise _translated(error, status) from None  # the cause may hold addresses and headers
            time.sleep(min(_retry_after(error) or wait, LONGEST_WAIT_SECONDS))
            wait *= 2
    raise AssertionError("the last attempt returns or raises")


def _translated(error: Exception, status: int | None) -> Exception:
    """Returns what is told of an error of huggingface_hub or of its transport; others come back as they are."""
    from huggingface_hub import errors

    meanings: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "it is gated: accept its terms on its page and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "it has no such revision"),
        (errors.RepositoryNotFoundError, "the hub has no such model, or it is private (set HF_TOKEN)"),
        (errors.HFValidationError, "no model of the hub can have this name"),
        (errors.OfflineModeIsEnabled, "the hub is not asked in offline mode"),
    )
    for kind, meaning in meanings:
        if isinstance(error, kind):
            return HubFileError(meaning)
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return HubFileMissingError("it has no such file")
    if status is not None:
        return HubFileError(_status_meaning(status))
    if isinstance(error, _transport_errors()):
        return HubFileError(f"the hub cannot be reached ({type(error.__cause__ or error).__name__})")
    return error


def _status_meaning(status: int) -> str:
    if status in _BUSY:
        return f"the hub is busy or broken (status {status}, asked {ATTEMPTS} times)"
    if status in (401, 403):
        return f"the hub denies it (status {status}): check HF_TOKEN and its permissions"
    return f"the hub answers with status {status}"


def _transport_errors() -> tuple[type[Exception], ...]:
    """Returns what a failed request raises: OSError, and the base of httpx's or httpx2's errors."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = (base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    return (ValueError, *bases, OSError)


def _response(error: BaseException) -> Any:
    """Returns the response behind an error; huggingface_hub hides some as the cause of a missing cache entry."""
    found = getattr(error, "response", None)
    return found if found is not None or error.__cause__ is None else _response(error.__cause__)


def _status(error: BaseException) -> int | None:
    status = getattr(_response(error), "status_code", None)
    return status if isinstance(status, int) else None


def _retry_after(error: BaseException) -> float | None:
    text = _response(error).headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _whole_size(response: Any) -> int | None:
    text = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status_code == 200:
        text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None
