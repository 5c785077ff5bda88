"""Is somebody told: the alert webhook, tried."""

from __future__ import annotations

from convsync.doctor.check import Check, ok, problem
from convsync.observe.alerts import send_test, webhook_post
from convsync.settings import Settings

_WHY = "Whoever has no Prometheus is told of no failure."
_SET = "set CONVSYNC_ALERT_WEBHOOK_URL in .env, restart the service, then: convsync doctor --test-alert"


async def check_alerting(settings: Settings) -> Check:
    """Send a test notice. The address is shown nowhere: it may hold a token."""
    async with webhook_post(settings.alert_webhook_url) as post:
        if post is None:
            return problem(
                "alerting", "no_alert_webhook", "CONVSYNC_ALERT_WEBHOOK_URL is not set.", _WHY, _SET
            )
        failed = await send_test(post)
    if failed is None:
        return ok("alerting", "the address took a test notice; look whether it came")
    told = f"The address in CONVSYNC_ALERT_WEBHOOK_URL did not take a test notice: {failed}."
    return problem("alerting", "alert_not_taken", told, _WHY, _SET)
