# SPDX-License-Identifier: Apache-2.0
"""Whether telemetry arrives: a span, a data point and a log record are sent, and acknowledged or not."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from opentelemetry.sdk.resources import Resource

from otel_crdb.config import Config

from . import collector, exporters, samples
from .collector import Trouble
from .exporters import Way
from .findings import Finding
from .probes import Probe, side_by_side
from .static import SIGNALS

#: Loggers of what is tried here: what they would say is said by the findings.
NOISY = ("opentelemetry", "otel_crdb", "urllib3", "grpc")
#: Trace ids that a sampler is asked about; one that takes none of them takes none.
ASKED_OF_SAMPLER = 1000


@dataclass(frozen=True, slots=True)
class _Sent:
    """What became of one thing that was sent."""

    signal: str
    #: By which protocol to which server.
    way: str
    path: str
    #: None: it was acknowledged.
    trouble: Trouble | None
    seconds: float


def of_exports(config: Config, timeout: float) -> tuple[Finding, ...]:
    """Send one of each signal, side by side, and tell what became of it."""
    attempts: list[tuple[str, Callable[[], _Sent]]] = []
    told: list[Finding] = []
    for signal in SIGNALS:
        provider = exporters.provider_of(signal, config)
        ways = exporters.find(signal, provider) if getattr(config, signal) else []
        told += [_console(signal) for way in ways if way.is_console]
        attempts += [
            (signal, partial(_send, way, _resource(provider), timeout)) for way in ways if not way.is_console
        ]
        if not ways:
            told += _nothing_sends(signal, provider, config)
    with _quiet():
        probes = side_by_side([attempt for _, attempt in attempts], time.monotonic() + 2 * timeout + 1)
    told += _outcomes([signal for signal, _ in attempts], probes)
    told.sort(key=lambda finding: (*SIGNALS, "all signals").index(finding.about.partition(",")[0]))
    return (*_service(config), *told, *(_sampler(config) if config.traces else ()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters log to themselves: it is told as findings."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _resource(provider: Any) -> Resource:
    for holder in (provider, getattr(provider, "_sdk_config", None)):
        for name in ("resource", "_resource"):
            found = getattr(holder, name, None)
            if isinstance(found, Resource):
                return found
    return Resource.create()


def _service(config: Config) -> Iterator[Finding]:
    """Tell what the service is called, where anything is sent of it."""
    providers = [exporters.provider_of(signal, config) for signal in SIGNALS if getattr(config, signal)]
    names = [
        str(_resource(provider).attributes.get("service.name", ""))
        for provider in providers
        if hasattr(provider, "force_flush")
    ]
    if not names:
        return
    if names[0].startswith("unknown_service") or not names[0]:
        what = f"the service is called {names[0] or 'nothing'}: it cannot be told from others"
        yield Finding("warn", "service", what, "OTEL_SERVICE_NAME=<the service>", "service-unnamed")
    else:
        yield Finding("ok", "service", names[0])


# --- one thing that is sent ------------------------------------------------------------------------------


def _send(way: Way, resource: Resource, timeout: float) -> _Sent:
    """Send one thing; where it is not acknowledged, find out why."""
    things = samples.batch(way.signal, resource)
    attempt = Probe(lambda: way.send(things, timeout))
    in_time = attempt.wait(time.monotonic() + timeout)
    acknowledged, why = attempt.result or (False, "")
    target, trouble = way.target, None
    if target is not None and not (acknowledged and way.judges):
        payload = samples.encoded(way.signal, things)
        trouble = collector.trouble_with(target, payload, timeout, sent=acknowledged)
    if trouble is None and not acknowledged:
        trouble = _unexplained(attempt, why, in_time, timeout)
    path = "" if target is None or target.grpc else target.url.path
    return _Sent(way.signal, way.described, path, trouble, attempt.seconds or timeout)


def _unexplained(attempt: Probe[Any], why: str, in_time: bool, timeout: float) -> Trouble:
    if not in_time:
        what = f"not acknowledged within {timeout:g} s"
    elif attempt.error is not None:
        what = f"it fails with {type(attempt.error).__name__}: {attempt.error}"
    else:
        what = why or "the exporter says that it failed"
    return Trouble(what, "look into the collector's log; --timeout gives it longer")


def _outcomes(signals: Sequence[str], probes: Sequence[Probe[_Sent]]) -> Iterator[Finding]:
    """Tell of each, and of those with the same trouble at once."""
    same: dict[tuple[str, Trouble], list[str]] = {}
    for signal, probe in zip(signals, probes, strict=True):
        sent = probe.result
        if sent is None:
            reason = f"{type(probe.error).__name__}: {probe.error}" if probe.error else "not answered in time"
            same.setdefault(("", Trouble(f"could not be tried: {reason}", "raise --timeout")), []).append(
                signal
            )
        elif sent.trouble is None:
            milliseconds = sent.seconds * 1000
            what = f"{sent.way}{sent.path}: acknowledged in {milliseconds:.0f} ms"
            yield Finding("ok", signal, what)
        else:
            same.setdefault((sent.way, sent.trouble), []).append(signal)
    for (way, trouble), affected in same.items():
        what = f"{way}: {trouble.what}" if way else trouble.what
        about = "all signals" if len(affected) == len(SIGNALS) else ", ".join(affected)
        yield Finding("fail", about, what, trouble.mend, "not-arriving")


# --- nothing is sent -------------------------------------------------------------------------------------


def _console(signal: str) -> Finding:
    return Finding("note", signal, "are printed to the terminal")


def _nothing_sends(signal: str, provider: Any, config: Config) -> Iterator[Finding]:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    if not getattr(config, signal):
        yield Finding("note", signal, f"off, as asked: {config.origins.get(signal, signal)}")
    elif os.environ.get(variable, "").strip().lower() == "none":
        yield Finding("note", signal, f"nothing is sent: {variable}=none")
    elif hasattr(provider, "force_flush"):
        name = type(provider).__qualname__
        what = f"{name} has no exporter that is known here: what becomes of its {signal} cannot be told"
        yield Finding("warn", signal, what, "add a processor with an exporter to it", "no-exporter")
    else:
        what = f"nothing is sent: there is no provider, only {type(provider).__name__}"
        mend = f"see the log of the start: {variable} names an exporter that is not to be had"
        yield Finding("fail", signal, what, mend, "no-provider")


# --- sampling --------------------------------------------------------------------------------------------


def _sampler(config: Config) -> Iterator[Finding]:
    sampler = getattr(exporters.provider_of("traces", config), "sampler", None)
    if sampler is None:
        return
    described = _described(sampler)
    try:
        taken = sum(_is_sampled(sampler) for _ in range(ASKED_OF_SAMPLER))
    except Exception:  # noqa: BLE001 - an application's own sampler may need what only a request has
        yield Finding("note", "sampler", described)
        return
    if taken:
        part = f": about {100 * taken / ASKED_OF_SAMPLER:.1f} % of traces"
        yield Finding("ok", "sampler", described + ("" if taken == ASKED_OF_SAMPLER else part))
    else:
        what = f"{described}: every trace that begins here is dropped"
        mend = "unset OTEL_TRACES_SAMPLER, or OTEL_TRACES_SAMPLER=parentbased_always_on"
        yield Finding("fail", "sampler", what, mend, "sampler-drops-all")


def _described(sampler: Any) -> str:
    """Return what a sampler calls itself; of one that asks the parent first, what it does at the root."""
    root = getattr(sampler, "_root", None)
    if root is not None:
        return f"{type(sampler).__name__}, {root.get_description()} where a trace begins"
    return str(sampler.get_description())


def _is_sampled(sampler: Any) -> bool:
    decision = sampler.should_sample(None, random.getrandbits(128), samples.NAME).decision
    return bool(decision.is_sampled())
