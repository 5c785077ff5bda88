// The page as served is complete; this keeps it so: Pages every few seconds, a running sync by its event stream.
const REFRESH_MS = 3000;
const ENDED = new Set(["succeeded", "partial", "failed", "cancelled", "paused"]);
const streams = new Map();
const connection = document.getElementById("connection");

// The address may hold a key that a person typed into it; what is fetched from here must not.
const address = (path) => new URL(path, location.origin);

function show(element, value) {
  const text = value === null || value === undefined ? "none yet" : readable(String(value));
  if (element && element.textContent !== text) element.textContent = text;
}

function readable(text) {
  const time = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)/.exec(text);
  return time ? `${time[1]} ${time[2]} UTC` : text;
}

function showRun(card, run, known) {
  const section = card.querySelector(".run");
  section.hidden = false;
  for (const name of ["status", "mode", "run_id"]) show(section.querySelector(`[data-run=${name}]`), run[name]);
  show(section.querySelector("[data-run=reason]"), run.reason ?? "");
  show(
    section.querySelector("[data-run=counts]"),
    `${run.conversations_seen} conversations read, ${run.messages_added} messages added, ${run.calls} calls`,
  );
  const bar = section.querySelector("[data-run=bar]");
  bar.hidden = ENDED.has(run.status) && run.status !== "succeeded";
  if (run.status === "succeeded") {
    bar.max = 1;
    bar.value = 1;
  } else if (known > run.conversations_seen) {
    bar.max = known;
    bar.value = run.conversations_seen;
  } else {
    bar.removeAttribute("value");
  }
}

function watch(card, run, known) {
  if (streams.has(run.run_id) || ENDED.has(run.status)) return;
  const stream = new EventSource(address(`/api/conversations/sync-stream?run_id=${run.run_id}`));
  streams.set(run.run_id, stream);
  const update = (event) => showRun(card, JSON.parse(event.data), known);
  stream.addEventListener("progress", update);
  stream.addEventListener("done", (event) => {
    update(event);
    stream.close();
    streams.delete(run.run_id);
  });
}

async function refresh() {
  try {
    const answer = await fetch(address("/api/pages"), { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
    const { pages } = await answer.json();
    const cards = new Map([...document.querySelectorAll("[data-page]")].map((card) => [card.dataset.page, card]));
    if (pages.some((page) => !cards.has(page.page_id))) {
      location.reload();
      return;
    }
    for (const page of pages) {
      const card = cards.get(page.page_id);
      for (const field of card.querySelectorAll("[data-field]")) show(field, page[field.dataset.field]);
      if (page.last_run) {
        const known = page.last_success_at ? page.conversations : 0;
        if (!streams.has(page.last_run.run_id)) showRun(card, page.last_run, known);
        watch(card, page.last_run, known);
      }
    }
    show(connection, "");
  } catch (error) {
    show(connection, `Not up to date: ${error.message}`);
  }
  setTimeout(refresh, REFRESH_MS);
}

refresh();
