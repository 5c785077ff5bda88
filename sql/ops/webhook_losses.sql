-- Webhooks that never came, by hour.
--
--   convsync psql -f sql/ops/webhook_losses.sql       or, in psql as the owner: \i sql/ops/webhook_losses.sql
--
-- What it shows: a row per Page and hour (UTC) of the last seven days in which messages were sent whose webhook never came: how
-- many of people (received), how many of the Page itself (sent). A sync found them, so they are in the mirror; a webhook that
-- comes after all takes its message off again. docs/proof.md tells what counts.
--
-- When to worry: hours in a row. A few in one hour is a restart or a network fault; `sent` alone means that the field message_echoes
-- is not subscribed.
--
-- What to do: convsync doctor PAGE_ID asks Graph whether the Page is subscribed, and to what; convsync page subscribe PAGE_ID
-- subscribes it again. If it is, look at the proxy: GET /metrics has convsync_webhook_requests_total by status.

select w.page_id, w.hour, w.received, w.sent
from convsync_ops.webhook_losses w
order by w.hour desc, w.page_id;
