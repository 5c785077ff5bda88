"""What the handlers use, by its key in the application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from convsync.graph.client import GraphClient
from convsync.observe.alerts import Alerter, Tells
from convsync.observe.drift import DriftRecorder
from convsync.observe.measures import Measures
from convsync.observe.metrics import AllProcesses, ServiceMetrics, WritePath
from convsync.settings import Settings
from convsync.store import Store
from convsync.sync.contacts import ContactReader
from convsync.sync.runner import SyncRunner
from convsync.tokens import TokenBox
from convsync.web.limits import Streams
from convsync.web.sessions import Sessions
from convsync.webhook.group_commit import GroupCommit


@dataclass(slots=True)
class Lifecycle:
    """`stopping` from the moment the service was asked to end: not ready any more, but still answering."""

    stopping: bool = False
    _ends: float | None = None

    def stop(self, seconds: float) -> None:
        """Everything is to have ended in so many seconds from the first call on."""
        if not self.stopping:
            self.stopping = True
            self._ends = asyncio.get_running_loop().time() + seconds

    def seconds_left(self, spare: float = 0.0) -> float:
        """Of these, what is left if `spare` of them are to be kept for what comes after."""
        if self._ends is None:
            return 0.0
        return max(0.0, self._ends - asyncio.get_running_loop().time() - spare)


SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
# What this process was started with; the files may be a newer release's by now.
SCHEMA: web.AppKey[str] = web.AppKey("schema", str)
LIFECYCLE: web.AppKey[Lifecycle] = web.AppKey("lifecycle", Lifecycle)
STORE: web.AppKey[Store] = web.AppKey("store", Store)
GRAPH: web.AppKey[GraphClient] = web.AppKey("graph", GraphClient)
TOKENS: web.AppKey[TokenBox] = web.AppKey("tokens", TokenBox)
SESSIONS: web.AppKey[Sessions] = web.AppKey("sessions", Sessions)
STREAMS: web.AppKey[Streams] = web.AppKey("streams", Streams)
COMMIT: web.AppKey[GroupCommit] = web.AppKey("commit", GroupCommit)
RUNNER: web.AppKey[SyncRunner] = web.AppKey("runner", SyncRunner)
DRIFT: web.AppKey[DriftRecorder] = web.AppKey("drift", DriftRecorder)
CONTACTS: web.AppKey[ContactReader] = web.AppKey("contacts", ContactReader)
WRITE_PATH: web.AppKey[WritePath] = web.AppKey("write_path", WritePath)
MEASURES: web.AppKey[Measures] = web.AppKey("measures", Measures)
# Only where one service is several processes.
ALL_PROCESSES: web.AppKey[AllProcesses] = web.AppKey("all_processes")
METRICS: web.AppKey[ServiceMetrics] = web.AppKey("metrics", ServiceMetrics)
# Where one service is several processes: whether this one tells of an alert that others may see too.
TELLS: web.AppKey[Tells] = web.AppKey("tells")
ALERTER: web.AppKey[Alerter] = web.AppKey("alerter", Alerter)
