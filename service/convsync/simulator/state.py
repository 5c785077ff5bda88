"""What one running simulator holds: inboxes, tokens, limits, faults, calls, webhooks, life."""

from __future__ import annotations

from aiohttp import web

from convsync.simulator.calls import CallLog
from convsync.simulator.clock import SimulatedClock
from convsync.simulator.config import SimulatedPage, SimulatorConfig
from convsync.simulator.faults import Faults
from convsync.simulator.life import Life
from convsync.simulator.limits import PageLimits, PersonLimits
from convsync.simulator.population import Population
from convsync.simulator.webhooks import WebhookSender


class SimulatorState:
    """Everything a request may need. Built from a config; changed by traffic and by `/_sim/`."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        start = None if config.speed == 1 else int(config.now.timestamp() * 1000)
        self.clock = SimulatedClock(config.speed, start)
        self.pages: dict[str, SimulatedPage] = {page.page_id: page for page in config.pages}
        self.tokens: dict[str, SimulatedPage] = {page.token: page for page in config.pages}
        self.populations: dict[str, Population] = {
            page.page_id: Population(
                page.page_id,
                config.seed,
                config.conversations,
                config.messages,
                config.now,
                page_name=page.name,
                clock=self.clock.now_ms,
                longest=config.longest,
            )
            for page in config.pages
        }
        self.limits: dict[str, PageLimits] = {
            page_id: PageLimits(
                config.calls_per_second,
                config.hourly_calls,
                pages_hourly_calls=config.graph.pages_hourly_calls,
            )
            for page_id in self.pages
        }
        self.person_limits = PersonLimits(config.graph.app_hourly_calls, config.graph.user_hourly_calls)
        self.faults = Faults()
        for fault in config.faults:
            self.faults.plant(fault)
        self.calls = CallLog()
        self.webhooks = WebhookSender(
            config.app_secret,
            config.webhooks_to,
            verify_token=config.verify_token,
            timeout=config.webhook_timeout,
            retries=config.webhook_retries,
            retry_delay=config.webhook_retry_delay,
            backoff=config.webhook_backoff,
            alert_after=config.webhook_alert_after,
            unsubscribe_after=config.webhook_unsubscribe_after,
            echo_before_answer=config.echo_before_answer,
            clock=self.clock,
            seed=config.seed,
        )
        for webhook_fault in config.webhook_faults:
            self.webhooks.faults.plant(webhook_fault)
        self.life = Life(self.populations, self.webhooks, self.clock, config.seed)
        if config.subscribed:
            for page_id in self.pages:
                self.webhooks.subscribe(page_id)


STATE: web.AppKey[SimulatorState] = web.AppKey("simulator", SimulatorState)
