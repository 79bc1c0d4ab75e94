# SPDX-License-Identifier: Apache-2.0
"""What an attempt at a view changes on its request, and puts back for the next one.

The request's attributes and what they hold are noted before the first attempt: containers, the session,
the messages, the user and other model instances, how far an upload was read. What cannot be put back keeps
the view from being run again. An object of the application's own is left as the attempt has left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.messages.storage.base import BaseStorage
from django.contrib.sessions.backends.base import SessionBase
from django.core.files.uploadedfile import UploadedFile
from django.db import router
from django.db.models import Model
from django.db.models.base import ModelState
from django.http import HttpRequest
from django.utils.datastructures import MultiValueDict
from django.utils.functional import LazyObject

PutBack = Callable[[], None]

#: Objects that are what their attributes are.
PLAIN_OBJECTS = (BaseStorage, LazyObject, Model, ModelState, MultiValueDict, SessionBase)
#: What holds nothing that could be changed.
ATOMS = frozenset({bool, bytes, float, int, str, tuple, type(None)})
#: What has come over the network has come once.
OF_THE_STREAM = frozenset({"_body", "_read_started", "_stream"})


class RequestState:
    """A request as it was before the first attempt at its view."""

    def __init__(self, request: HttpRequest, using: str) -> None:
        self._request = request
        self._using = using
        self._parsed_before = "_files" in vars(request)
        self._read_before = _is_read_raw(request) and not self._parsed_before
        #: What an attempt has parsed of an upload: its fields and its files.
        self._parsed: tuple[Any, Any] | None = None
        self._keepers_of_parsed: list[PutBack] = []
        self._own_handlers = False
        session = vars(request).get("session")
        self._session_key = getattr(session, "session_key", None)
        # Shadows the method of the class, which parses an upload once and for all.
        request.parse_file_upload = self._parse_file_upload
        self._put_attributes_back = _keep_dict(vars(request), set())

    def release(self) -> None:
        """Leave the request to itself."""
        vars(self._request).pop("parse_file_upload", None)

    def put_back(self) -> None:
        """Make the request what it was before the first attempt."""
        request = self._request
        stream = {name: value for name, value in vars(request).items() if name in OF_THE_STREAM}
        self._put_attributes_back()
        vars(request).update(stream)
        if "_body" in stream:
            request._stream = BytesIO(request._body)
        elif self._parsed is not None:
            for put_back in self._keepers_of_parsed:
                put_back()
            request._post, request._files = self._parsed

    def obstacle(self) -> str | None:
        """Return what of an attempt's doings cannot be put back; None where all of them can."""
        parsed = self._parsed_before or self._parsed is not None
        if self._read_before or (_is_read_raw(self._request) and not parsed):
            return "the request's raw stream was read"
        if self._own_handlers:
            return "the view has set upload handlers of its own"
        for upload in _uploads_of(self._request):
            if upload.closed:
                return "an upload was closed"
            if hasattr(upload, "temporary_file_path") and not Path(upload.temporary_file_path()).exists():
                return "an upload was moved away"
        if self._session_is_lost():
            return "the session has a new key, and its store keeps no transactions"
        return None

    def _parse_file_upload(self, *args: Any) -> tuple[Any, Any]:
        request = self._request
        handlers = [f"{type(each).__module__}.{type(each).__qualname__}" for each in request.upload_handlers]
        self._own_handlers = handlers != list(settings.FILE_UPLOAD_HANDLERS)
        parsed: tuple[Any, Any] = type(request).parse_file_upload(request, *args)
        self._parsed = parsed
        self._keepers_of_parsed = list(_keepers(parsed, set()))
        return parsed

    def _session_is_lost(self) -> bool:
        """Whether the old session was thrown away where that is not undone by a ROLLBACK."""
        session = vars(self._request).get("session")
        if self._session_key is None or getattr(session, "session_key", None) == self._session_key:
            return False
        # By their names: to import the stores is to import a model, which not every project has installed.
        stores = {f"{each.__module__}.{each.__qualname__}" for each in type(session).__mro__}
        if "django.contrib.sessions.backends.db.SessionStore" in stores:
            return bool(router.db_for_write(session.model) != self._using)
        return "django.contrib.sessions.backends.signed_cookies.SessionStore" not in stores


def read_body(request: HttpRequest) -> None:
    """Read the body, so that it is there for every attempt, where Django would hold it in memory."""
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    with suppress(ValueError):
        length = int(request.META.get("CONTENT_LENGTH") or 0)
        fits = request.content_type != "multipart/form-data" and (limit is None or length <= limit)
        if fits and not getattr(request, "_read_started", False):
            request.body  # noqa: B018 - kept by the request


def _is_read_raw(request: HttpRequest) -> bool:
    return bool(getattr(request, "_read_started", False)) and not hasattr(request, "_body")


def _uploads_of(request: HttpRequest) -> Iterator[UploadedFile]:
    for uploads in dict.values(vars(request).get("_files") or {}):
        yield from uploads


# --- what is kept, kind by kind ----------------------------------------------------------------


def _keepers(values: Any, seen: set[int]) -> Iterator[PutBack]:
    """Yield what puts the contents of each value back. ``seen``: a request refers to itself in places."""
    for value in values:
        kind = type(value)  # a lazy object's __class__ would evaluate it
        if kind in ATOMS or id(value) in seen:
            continue
        if kind is dict:
            yield _keep_dict(value, seen)
        elif kind is list:
            yield _keep_list(value, seen)
        elif kind is set:
            yield _keep_set(value)
        elif issubclass(kind, UploadedFile):
            yield _keep_position(value)
        elif issubclass(kind, PLAIN_OBJECTS):
            if issubclass(kind, dict):
                yield _keep_dict(value, seen)
            yield _keep_dict(object.__getattribute__(value, "__dict__"), seen)


def _keep_dict(kept: dict[Any, Any], seen: set[int]) -> PutBack:
    seen.add(id(kept))
    items = list(dict.items(kept))
    inner = list(_keepers((value for _, value in items), seen))

    def put_back() -> None:
        dict.clear(kept)  # past what a subclass forbids: QueryDict is immutable to its users
        dict.update(kept, items)
        for each in inner:
            each()

    return put_back


def _keep_list(kept: list[Any], seen: set[int]) -> PutBack:
    seen.add(id(kept))
    items = list(kept)
    inner = list(_keepers(items, seen))

    def put_back() -> None:
        kept[:] = items
        for each in inner:
            each()

    return put_back


def _keep_set(kept: set[Any]) -> PutBack:
    items = set(kept)

    def put_back() -> None:
        kept.clear()
        kept.update(items)

    return put_back


def _keep_position(upload: UploadedFile) -> PutBack:
    position = upload.tell()

    def put_back() -> None:
        upload.seek(position)

    return put_back
