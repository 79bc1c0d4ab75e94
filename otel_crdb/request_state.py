# SPDX-License-Identifier: Apache-2.0
"""What an attempt at a view changes on its request, and puts back for the next one.

The request's attributes and what they hold are noted before the first attempt: containers, the session,
the messages, the user and other model instances, how far an upload was read. What cannot be put back keeps
the view from being run again. An object of the application's own is left as the attempt has left it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
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
from django.urls import ResolverMatch
from django.utils.datastructures import MultiValueDict
from django.utils.functional import LazyObject
from django.views import View

PutBack = Callable[[], None]

#: Objects that are what their attributes are.
PLAIN_OBJECTS = (BaseStorage, LazyObject, Model, ModelState, MultiValueDict, SessionBase, UploadedFile, View)
#: What holds nothing that could be changed.
ATOMS = frozenset({bool, bytes, float, int, str, type(None)})
#: The methods of a session that change its store.
SAVING = ("save", "delete", "asave", "adelete")
#: What has come over the network has come once.
OF_THE_STREAM = frozenset({"_body", "_read_started", "_stream"})


class RequestState:
    """A request, and what else a view is called with, as they were before the first attempt."""

    def __init__(self, request: HttpRequest, arguments: Iterable[Any], using: str) -> None:
        self._request = request
        self._using = using
        read = _is_read_raw(request)
        #: An upload, whose stream was read to parse it.
        self._parsed_before = read and "_files" in vars(request)
        #: What an attempt has parsed of an upload: its fields and its files.
        self._parsed: tuple[Any, Any] | None = None
        self._own_handlers = False
        self._session = vars(request).get("session")
        self._session_saved = False
        # These shadow the methods of the classes. What is parsed of an upload is parsed once and for all;
        # what is saved of a session that was there before may be read by the next attempt.
        request.parse_file_upload = self._parse_file_upload
        if getattr(self._session, "session_key", None) is not None and not self._session_is_undone():
            for name in SAVING:
                if hasattr(self._session, name):
                    setattr(self._session, name, self._noting_save(getattr(self._session, name)))
        self._kept, self._kept_of_parsed = Kept(), Kept()
        try:
            self._kept.attributes(vars(request))
            self._kept.all(arguments)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Leave the request to itself."""
        vars(self._request).pop("parse_file_upload", None)
        if self._session is not None:
            for name in SAVING:
                vars(self._session).pop(name, None)

    def put_back(self) -> None:
        """Make everything what it was before the first attempt."""
        request = self._request
        stream = {name: value for name, value in vars(request).items() if name in OF_THE_STREAM}
        self._kept.put_back()
        vars(request).update(stream)
        if "_body" in stream:
            request._stream = BytesIO(request._body)
        elif self._parsed is not None:
            self._kept_of_parsed.put_back()
            request._post, request._files = self._parsed

    def obstacle(self) -> str | None:
        """Return what of an attempt's doings cannot be put back; None where all of them can."""
        parsed = self._parsed_before or self._parsed is not None
        if _is_read_raw(self._request) and not parsed:
            return "the request's raw stream was read"
        if self._own_handlers:
            return "the view has set upload handlers of its own"
        for upload in (*self._kept.uploads, *self._kept_of_parsed.uploads):
            if upload.closed:
                return "an upload was closed"
            if hasattr(upload, "temporary_file_path") and not Path(upload.temporary_file_path()).exists():
                return "an upload was moved away"
        if self._session_saved:
            return "the session was saved, in a store that keeps no transactions"
        return None

    def _parse_file_upload(self, *args: Any) -> tuple[Any, Any]:
        request = self._request
        handlers = [f"{type(each).__module__}.{type(each).__qualname__}" for each in request.upload_handlers]
        self._own_handlers = handlers != list(settings.FILE_UPLOAD_HANDLERS)
        parsed: tuple[Any, Any] = type(request).parse_file_upload(request, *args)
        self._parsed = parsed
        self._kept_of_parsed.all(parsed)
        return parsed

    def _session_is_undone(self) -> bool:
        """Whether a ROLLBACK undoes what the session's store is told."""
        # By their names: to import the stores is to import a model, which not every project has installed.
        stores = [f"{each.__module__}.{each.__qualname__}" for each in type(self._session).__mro__]
        if "django.contrib.sessions.backends.cached_db.SessionStore" in stores:
            return False
        if "django.contrib.sessions.backends.db.SessionStore" in stores:
            return bool(router.db_for_write(self._session.model) == self._using)
        return "django.contrib.sessions.backends.signed_cookies.SessionStore" in stores

    def _noting_save(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._session_saved = True
            return method(*args, **kwargs)

        return noted


def _same(kept: dict[Any, Any], items: dict[Any, Any]) -> bool:
    """Whether a dict holds the very objects that it held, in their order."""
    return len(kept) == len(items) and all(
        key == before and value is held
        for (key, value), (before, held) in zip(dict.items(kept), items.items(), strict=True)
    )


class Kept:
    """Values that can be changed, with what they held.

    Only what differs is put back: a value may be one that all threads share.
    """

    def __init__(self) -> None:
        #: Uploads that can be read, and so can be read again.
        self.uploads: list[UploadedFile] = []
        self._put_back: list[PutBack] = []
        self._seen: set[int] = set()  # a request refers to itself in places

    def put_back(self) -> None:
        """Have every value hold again what it held."""
        for each in self._put_back:
            each()

    def all(self, values: Iterable[Any]) -> None:
        """Keep what each of these values holds, and what that holds."""
        for value in values:
            kind = type(value)  # a lazy object's __class__ would evaluate it
            if kind not in ATOMS and id(value) not in self._seen:
                self._seen.add(id(value))
                self._keep(value, kind)

    def attributes(self, attributes: dict[str, Any]) -> None:
        """Keep an object's ``__dict__``, and what its values hold."""
        items = dict(attributes)

        def put_back() -> None:
            if not _same(attributes, items):
                attributes.clear()
                attributes.update(items)

        self._put_back.append(put_back)
        self.all(items.values())

    def _keep(self, value: Any, kind: type) -> None:
        if issubclass(kind, dict):
            self._keep_dict(value, kind)
        elif issubclass(kind, (list, bytearray, deque)):
            self._keep_sequence(value)
        elif issubclass(kind, set):
            self._keep_set(value)
        elif issubclass(kind, tuple):
            self.all(value)
        elif issubclass(kind, UploadedFile):
            self._keep_position(value)
        elif issubclass(kind, ResolverMatch):
            self.all((value.args, value.kwargs))  # the rest of it is every thread's
        if issubclass(kind, PLAIN_OBJECTS):
            self.attributes(object.__getattribute__(value, "__dict__"))

    def _keep_dict(self, kept: Any, kind: type) -> None:
        # Past what QueryDict forbids, and a MultiValueDict takes for the last of several.
        plain: Any = dict if issubclass(kind, MultiValueDict) else kind
        items = dict(dict.items(kept))

        def put_back() -> None:
            if not _same(kept, items):
                plain.clear(kept)
                for key, value in items.items():
                    plain.__setitem__(kept, key, value)

        self._put_back.append(put_back)
        self.all(items.values())

    def _keep_sequence(self, kept: Any) -> None:
        items = list(kept)

        def put_back() -> None:
            if len(kept) != len(items) or any(
                each is not item for each, item in zip(kept, items, strict=True)
            ):
                kept.clear()
                kept.extend(items)

        self._put_back.append(put_back)
        self.all(items)

    def _keep_set(self, kept: set[Any]) -> None:
        items = set(kept)

        def put_back() -> None:
            if kept != items:
                kept.clear()
                kept.update(items)

        self._put_back.append(put_back)

    def _keep_position(self, upload: UploadedFile) -> None:
        try:
            position = upload.tell()
        except (AttributeError, OSError, ValueError):
            return  # closed, or kept elsewhere: the view cannot read it either

        def put_back() -> None:
            if not upload.closed:
                upload.seek(position)

        self.uploads.append(upload)
        self._put_back.append(put_back)


def read_body(request: HttpRequest) -> None:
    """Read the body, so that it is there for every attempt, where Django would hold it in memory."""
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    with suppress(ValueError):
        length = int(request.META.get("CONTENT_LENGTH") or "unknown")
        fits = request.content_type != "multipart/form-data" and (limit is None or length <= limit)
        if fits and hasattr(request, "_stream") and not request._read_started:
            request.body  # noqa: B018 - kept by the request


def _is_read_raw(request: HttpRequest) -> bool:
    return bool(getattr(request, "_read_started", False)) and not hasattr(request, "_body")
