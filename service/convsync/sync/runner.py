"""The runner: holds a run's lease while the walker works, and ends the run honestly.

However a run ends, its row says so: finished, paused (deadline, shutdown, interrupted), or, when the
database or the lease is gone, nothing, and then the lease expires and `resumable_syncs` offers the run
to whoever asks.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from convsync.errors import (
    AlreadyRunning,
    ConvsyncError,
    DatabaseUnavailable,
    LeaseLost,
    NotFound,
    TryAgain,
)
from convsync.observe.measures import Measures
from convsync.settings import Settings
from convsync.sync.calls import Caller, Control
from convsync.sync.ports import Begun, Graph, SawDrift, SealedToken, SyncStore, Time, ignore_drift
from convsync.sync.retry import Backoff, patiently
from convsync.sync.walker import Walker

_log = structlog.get_logger(__name__)

_LANES: Final = {"full": "backfill", "incremental": "repair", "reconcile": "backfill"}
_LAST_WORD_SECONDS: Final = 3.0
_BEGIN_PATIENCE_SECONDS: Final = 10.0
_DUE_SECONDS: Final = 10.0

_T = TypeVar("_T")
OpenToken = Callable[[str, bytes], str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt at a run ended.

    `status` is the run's own (`succeeded`, `partial`, `failed`, `paused`), or `lease_lost` if another
    process carries it or it was cancelled, or `interrupted` if the database was away too long.
    """

    run_id: int
    status: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """`calls_per_second` 0 means no limit. More `concurrency` loses more calls to a killed process.

    `rest_seconds` is how long a run that met its deadline rests before `supervise` resumes it. While
    `runs_at_once` are carried here, `supervise` begins and resumes no other: another process may.
    `depth_seconds` is how old messages may be that every reconcile reads again.
    """

    calls_per_second: float = 2.0
    concurrency: int = 3
    lease_seconds: float = 15.0
    poll_seconds: float = 2.0
    rest_seconds: float = 60.0
    runs_at_once: int = 20
    depth_seconds: float = 7 * 86400.0

    @classmethod
    def of(cls, settings: Settings) -> RunnerSettings:
        return cls(
            calls_per_second=settings.calls_per_second,
            lease_seconds=settings.lease_seconds,
            depth_seconds=settings.reconcile_depth,
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which syncs begin by themselves: the seconds from the beginning of one to the next, 0 for never."""

    sync_seconds: float
    reconcile_seconds: float
    modes: Sequence[str] = ("full", "incremental", "reconcile")


class SyncRunner:
    """Runs syncs of any number of Pages in one process.

    `run` carries one sync to its end in the caller's task. `start` returns once it has begun and
    leaves it to `supervise`, which also resumes what was paused or abandoned. `open_token` unseals
    a Page token: `(page_id, sealed) -> token`. `saw_drift` hears of what this release does not know;
    `measures` count what is done.
    """

    def __init__(
        self,
        store: SyncStore,
        graph: Graph,
        open_token: OpenToken,
        settings: RunnerSettings | None = None,
        *,
        time: Time | None = None,
        backoff: Backoff | None = None,
        owner: str | None = None,
        saw_drift: SawDrift = ignore_drift,
        measures: Measures | None = None,
    ) -> None:
        self._store = store
        self._measures = measures if measures is not None else Measures()
        self._saw_drift = saw_drift
        self._graph = graph
        self._open_token = open_token
        self._settings = settings if settings is not None else RunnerSettings()
        self._time = time if time is not None else Time()
        self._backoff = backoff if backoff is not None else Backoff()
        self._owner = owner or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._unknown_fields: dict[str, set[str]] = {}  # by Page: those this version of Graph does not have
        self._active: set[Control] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping: str | None = None
        self._told: Schedule | None = None
        self._group: asyncio.TaskGroup | None = None
        self._supervised = asyncio.Event()

    async def run(
        self,
        page_id: str,
        mode: str = "full",
        *,
        deadline_seconds: float | None = None,
        restart: bool = False,
        request_id: str | None = None,
    ) -> Outcome:
        """Begin (or resume) a sync and carry it until it ends, pauses or is lost.

        Raises `AlreadyRunning` and `NotFound` from beginning it. Cancelling pauses the run.
        """
        request_id = request_id or _new_request_id()
        begun = await self._begin(page_id, mode, restart, request_id)
        return await self._carry(page_id, mode, begun, deadline_seconds, request_id)

    async def start(
        self,
        page_id: str,
        mode: str = "full",
        *,
        deadline_seconds: float | None = None,
        restart: bool = False,
        request_id: str | None = None,
    ) -> Begun:
        """Begin (or resume) a sync and leave it to `supervise`, which must be running.

        Raises what `run` raises from beginning.
        """
        async with asyncio.timeout(5):
            await self._supervised.wait()
        request_id = request_id or _new_request_id()
        begun = await self._begin(page_id, mode, restart, request_id)
        self._leave_to_group(page_id, mode, begun, deadline_seconds, request_id)
        return begun

    async def retry(
        self,
        page_id: str,
        run_id: int,
        mode: str,
        *,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Begun:
        """As `start`, with what a run of that mode that has ended could not read."""
        async with asyncio.timeout(5):
            await self._supervised.wait()
        request_id = request_id or _new_request_id()
        begun = await self._beginning(
            lambda: self._store.retry_sync(
                page_id=page_id,
                run_id=run_id,
                owner=self._owner,
                lease_seconds=self._settings.lease_seconds,
                request_id=request_id,
            )
        )
        self._leave_to_group(page_id, mode, begun, deadline_seconds, request_id)
        return begun

    async def supervise(self, *, resume: bool = True, schedule: Schedule | None = None) -> None:
        """Own the runs of this process until cancelled, `resume` those that nobody carries, begin those that
        the `schedule` says are due.

        Cancelling it pauses every run it owns.
        """
        next_due = self._time.now()
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._supervised.set()
            try:
                while self._stopping is None:
                    if resume:
                        await self._resume()
                    if schedule is not None and self._time.now() >= next_due:
                        await self._begin_due(schedule)
                        next_due = self._time.now() + _DUE_SECONDS
                    await self._time.sleep(self._settings.poll_seconds)
            finally:
                self._supervised.clear()
                self._group = None

    async def drain(self, seconds: float, reason: str = "shutdown") -> bool:
        """Begin nothing more, let the pages under way be applied, pause every run; true if all made it.

        After a `shutdown` whoever supervises resumes the runs at once; after another reason they rest first.
        """
        self._stopping = reason
        for control in self._active:
            control.stop(reason)
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _resume(self) -> None:
        try:
            waiting = await self._store.resumable_syncs()
        except ConvsyncError as error:
            _log.warning("resumable_syncs_unknown", error=type(error).__name__)
            return
        begun, room = 0, self._settings.runs_at_once - len(self._active)
        for page_id, mode in [(run.page_id, run.mode) for run in waiting]:
            if begun >= room:
                return
            try:
                run = await self._begin(page_id, mode, False, None)
            except AlreadyRunning:
                continue
            except ConvsyncError as error:
                _log.warning("sync_not_resumed", page_id=page_id, mode=mode, error=str(error))
                continue
            self._leave_to_group(page_id, mode, run, None, await self._request_id(run.run_id))
            begun += 1

    async def _request_id(self, run_id: int) -> str | None:
        """Of whom a run that goes on was begun for."""
        try:
            known: str | None = (await self._store.get_sync_run(run_id=run_id))["request_id"]
        except ConvsyncError:
            return None
        return known

    async def _begin_due(self, schedule: Schedule) -> None:
        """Begin what is due and not begun by another process; lay down what nobody can carry on."""
        try:
            if self._told != schedule:
                await self._store.set_sync_schedule(
                    sync_seconds=schedule.sync_seconds, reconcile_seconds=schedule.reconcile_seconds
                )
                self._told = schedule
            if laid_down := await self._store.lay_down_syncs():
                _log.info("syncs_laid_down", count=laid_down)
            due = await self._store.due_syncs(modes=schedule.modes)
        except ConvsyncError as error:
            _log.warning("due_syncs_unknown", error=type(error).__name__)
            return
        begun, room = 0, self._settings.runs_at_once - len(self._active)
        for page_id, mode in [(one.page_id, one.mode) for one in due]:
            if begun >= room:
                return
            request_id = _new_request_id()
            try:
                run = await self._store.begin_due_sync(
                    page_id=page_id,
                    mode=mode,
                    owner=self._owner,
                    lease_seconds=self._settings.lease_seconds,
                    request_id=request_id,
                    depth_seconds=self._settings.depth_seconds,
                )
            except AlreadyRunning:
                continue
            except ConvsyncError as error:
                _log.warning("sync_not_begun", page_id=page_id, mode=mode, error=str(error))
                continue
            if run is not None:
                self._leave_to_group(page_id, mode, run, None, request_id)
                begun += 1

    def _leave_to_group(
        self, page_id: str, mode: str, begun: Begun, deadline_seconds: float | None, request_id: str | None
    ) -> None:
        if self._group is None:
            raise RuntimeError("supervise() is not running")
        self._group.create_task(
            self._carry(page_id, mode, begun, deadline_seconds, request_id), name=f"sync {begun.run_id}"
        )

    async def _begin(self, page_id: str, mode: str, restart: bool, request_id: str | None) -> Begun:
        return await self._beginning(
            lambda: self._store.begin_sync(
                page_id=page_id,
                mode=mode,
                owner=self._owner,
                lease_seconds=self._settings.lease_seconds,
                restart=restart,
                request_id=request_id,
                depth_seconds=self._settings.depth_seconds,
            )
        )

    async def _beginning(self, begin: Callable[[], Awaitable[_T]]) -> _T:
        give_up = self._time.now() + _BEGIN_PATIENCE_SECONDS
        return await patiently(begin, until=lambda: give_up, time=self._time, backoff=self._backoff)

    async def _carry(
        self,
        page_id: str,
        mode: str,
        begun: Begun,
        deadline_seconds: float | None,
        request_id: str | None,
    ) -> Outcome:
        """Carry a run that is ours. Never raises but when cancelled."""
        told = {"page_id": page_id, "run_id": begun.run_id, "mode": mode, "request_id": request_id}
        # Also what is logged below, by those who know nothing of the run: the client, the database's retries.
        with structlog.contextvars.bound_contextvars(**told):
            return await self._carry_logged(page_id, mode, begun, deadline_seconds, _log.bind(**told))

    async def _carry_logged(
        self, page_id: str, mode: str, begun: Begun, deadline_seconds: float | None, log: Any
    ) -> Outcome:
        log.info("sync_begun", resumed=begun.resumed)
        now = self._time.now()
        control = Control(
            time=self._time,
            lease_until=now + self._settings.lease_seconds,
            deadline=None if deadline_seconds is None else now + deadline_seconds,
            backoff=self._backoff,
        )
        if self._stopping is not None:
            control.stop(self._stopping)
        attempt = _Attempt(self, page_id, mode, begun, control, log)
        self._active.add(control)
        self._idle.clear()
        try:
            outcome = await attempt.carry()
        finally:
            self._active.discard(control)
            if not self._active:
                self._idle.set()
        log.info("sync_ended", status=outcome.status, reason=outcome.reason)
        self._measures.sync.ended(mode, outcome.status, self._time.now() - now)
        return outcome


def _new_request_id() -> str:
    """For what nobody asked for by HTTP: its log lines can be told from another's all the same."""
    return secrets.token_hex(16)


class _Attempt:
    """One process's hold on one run, from its beginning to its last word."""

    def __init__(
        self, runner: SyncRunner, page_id: str, mode: str, begun: Begun, control: Control, log: Any
    ) -> None:
        self._runner = runner
        self._store = runner._store
        self._settings = runner._settings
        self._time = runner._time
        self._page_id = page_id
        self._mode = mode
        self._run_id = begun.run_id
        self._fence = begun.fence
        self._control = control
        self._log = log
        self._sealed: bytes | None = None
        self._known_valid = False

    async def carry(self) -> Outcome:
        lost = away = broken = False
        try:
            try:
                await self._work()
            except* LeaseLost:
                lost = True
            except* (TryAgain, DatabaseUnavailable):
                away = True
            except* Exception:
                broken = True
                self._log.exception("sync_broken")
        except asyncio.CancelledError:
            await self._last_word()
            raise
        if lost:
            return Outcome(self._run_id, "lease_lost")
        if away:
            return Outcome(self._run_id, "interrupted", "database_unavailable")
        if broken:
            self._control.stop("internal_error", failed=True)
        try:
            return await self._end()
        except LeaseLost:
            return Outcome(self._run_id, "lease_lost")
        except (TryAgain, DatabaseUnavailable):
            return Outcome(self._run_id, "interrupted", "database_unavailable")
        except ConvsyncError:
            self._log.exception("sync_not_ended")
            return Outcome(self._run_id, "interrupted", "internal_error")
        except asyncio.CancelledError:
            await self._last_word()
            raise

    async def _work(self) -> None:
        """Walk, with the lease renewed all the while."""
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(self._renew(), name=f"lease {self._run_id}")
            token = await self._token()
            if token is not None:
                await self._walker(token).walk()
            renewal.cancel()

    def _walker(self, token: str) -> Walker:
        caller = Caller(
            store=self._store,
            graph=self._runner._graph,
            page_id=self._page_id,
            run_id=self._run_id,
            fence=self._fence,
            lane=_LANES.get(self._mode, "backfill"),
            calls_per_second=self._settings.calls_per_second,
            token=token,
            control=self._control,
            measures=self._runner._measures.graph,
        )
        return Walker(
            store=self._store,
            caller=caller,
            control=self._control,
            page_id=self._page_id,
            run_id=self._run_id,
            fence=self._fence,
            unknown_fields=self._runner._unknown_fields.setdefault(self._page_id, set()),
            mode=self._mode,
            lease_seconds=self._settings.lease_seconds,
            token_works=self._token_works,
            token_is_dead=self._token_is_dead,
            reload_token=self._token_if_replaced,
            concurrency=self._settings.concurrency,
            log=self._log,
            saw_drift=self._runner._saw_drift,
            measures=self._runner._measures.sync,
        )

    async def _token(self) -> str | None:
        """Open the Page's token; without one the run fails, and says so."""
        try:
            kept = await self._kept_token()
        except NotFound:
            self._control.stop("page_removed", failed=True)
            return None
        if kept.sealed is None:
            self._control.stop("token_missing", failed=True)
            return None
        if kept.state == "invalid":
            # Meta has said so, and calls with a dead token are held against the app.
            self._control.stop("token_invalid", failed=True)
            return None
        try:
            token = self._runner._open_token(self._page_id, kept.sealed)
        except Exception as error:  # whatever the box raises, the token cannot be read
            self._log.error("token_unreadable", error=type(error).__name__)
            self._control.stop("token_unreadable", failed=True)
            return None
        self._sealed = kept.sealed
        self._known_valid = kept.state == "valid"
        return token

    async def _kept_token(self) -> SealedToken:
        return await self._control.patiently(lambda: self._store.page_token(page_id=self._page_id))

    async def _token_if_replaced(self) -> str | None:
        try:
            kept = await self._kept_token()
        except NotFound:
            return None
        return None if kept.sealed == self._sealed else await self._token()

    async def _token_works(self) -> None:
        """Graph answered: the token is valid, if nobody knew that yet."""
        if self._known_valid or self._control.failed:
            return
        self._known_valid = True
        await self._mark_token("valid", None)

    async def _token_is_dead(self, told: str) -> None:
        await self._mark_token("invalid", told)

    async def _mark_token(self, state: str, error: str | None) -> None:
        """Of the token in use: somebody may have stored another since it was read."""
        sealed = self._sealed
        with suppress(NotFound):
            await self._control.patiently(
                lambda: self._store.mark_token(
                    page_id=self._page_id, state=state, error=error, token_sealed=sealed
                )
            )

    async def _renew(self) -> None:
        """Renew the lease, until cancelled; raise if it is lost."""
        lease = self._settings.lease_seconds
        while True:
            await self._time.sleep(lease / 3)
            asked = self._time.now()
            await self._control.patiently(
                lambda: self._store.renew_sync_lease(
                    page_id=self._page_id, run_id=self._run_id, fence=self._fence, lease_seconds=lease
                )
            )
            self._control.lease_until = asked + lease

    async def _end(self) -> Outcome:
        """Write down how the run ended, as long as the lease holds."""
        reason = self._control.reason
        if reason is not None and not self._control.failed:
            await self._control.patiently(lambda: self._pause(reason))
            return Outcome(self._run_id, "paused", reason)
        status = await self._control.patiently(
            lambda: self._store.finish_sync(
                page_id=self._page_id, run_id=self._run_id, fence=self._fence, failure=reason
            )
        )
        if status == "partial":
            run = await self._control.patiently(lambda: self._store.get_sync_run(run_id=self._run_id))
            return Outcome(self._run_id, status, run["reason"])
        return Outcome(self._run_id, status, reason)

    async def _pause(self, reason: str) -> None:
        await self._store.pause_sync(
            page_id=self._page_id,
            run_id=self._run_id,
            fence=self._fence,
            reason=reason,
            # After a shutdown the next process goes on at once; else somebody wanted a rest.
            resume_after_seconds=0 if reason == "shutdown" else self._settings.rest_seconds,
        )

    async def _last_word(self) -> None:
        """Pause the run though we are being cancelled; if that fails, its lease simply expires."""
        with suppress(ConvsyncError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._pause(self._runner._stopping or "shutdown")
