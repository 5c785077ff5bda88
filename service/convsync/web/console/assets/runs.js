// A running sync follows its event stream; at the end the page is asked for again. A browser opens six connections to a host, for all
// of its windows together: each window holds one, while somebody looks at it. What else is at work is as new as the page.
let watched = null;
const announcement = document.getElementById("announcement");

function told(value) {
  return value === null ? "not known yet" : value.toLocaleString("en");
}

function lasting(seconds) {
  if (seconds === null) return "not known yet";
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

function show(run) {
  for (const section of document.querySelectorAll(`[data-run="${run.run_id}"]`)) {
    for (const field of section.querySelectorAll("[data-of]")) {
      const name = field.dataset.of;
      const text = name === "eta_seconds" ? lasting(run[name]) : told(run[name]);
      if (field.textContent !== text) field.textContent = text;
    }
    const bar = section.querySelector("progress");
    if (!bar) continue;
    if (run.status === "succeeded") {
      bar.max = 1;
      bar.value = 1;
    } else if (run.calls_left !== null && run.calls) {
      bar.max = run.calls + run.calls_left;
      bar.value = run.calls;
    } else {
      bar.removeAttribute("value");
    }
  }
}

export function watchRuns(part, refresh) {
  const section = part.querySelector("[data-running]");
  if (!section || watched || document.hidden) return;
  const id = section.dataset.run;
  const stream = new EventSource(`/api/conversations/sync-stream?run_id=${id}`);
  watched = stream;
  stream.addEventListener("progress", (event) => show(JSON.parse(event.data)));
  stream.addEventListener("batch_failed", refresh);
  stream.addEventListener("done", (event) => {
    const run = JSON.parse(event.data);
    unwatchRuns();
    show(run);
    announcement.textContent = `Run ${id} is ${run.status}.`;
    refresh();
  });
  // It was refused, and does not come back by itself.
  stream.addEventListener("error", () => stream.readyState === EventSource.CLOSED && stream === watched && unwatchRuns());
}

export function unwatchRuns() {
  watched?.close();
  watched = null;
}
