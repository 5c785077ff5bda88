// The change feed as rows, newest first. An EventSource comes back by itself, and goes on where it was.
import { localise } from "./times.js";

const SHOWN = 200;

function cell(row, content, address) {
  const made = row.insertCell();
  if (!address) {
    made.append(content);
    return made;
  }
  const link = document.createElement("a");
  link.href = address;
  link.textContent = content;
  made.append(link);
  return made;
}

function add(feed, change) {
  const row = feed.insertRow(0);
  const time = document.createElement("time");
  time.dateTime = change.at;
  time.textContent = `${change.at.slice(0, 16).replace("T", " ")} UTC`;
  const page = `/console/pages/${encodeURIComponent(change.page_id)}`;
  cell(row, time);
  cell(row, change.page_id, page);
  cell(row, change.conversation_id, `${page}/conversations/${change.conversation_id}`);
  cell(row, String(change.version)).className = "number";
  cell(row, change.kinds.join(", "));
  localise(row);
  while (feed.rows.length > SHOWN) feed.deleteRow(-1);
}

export function follow(feed) {
  if (!feed) return;
  const state = document.getElementById("feed-state");
  // Not in the state, which is read aloud whenever it changes.
  const counter = document.getElementById("feed-count");
  const say = (text) => (state.textContent = text);
  let count = 0;
  let after = feed.dataset.after;
  let stream = null;

  function listen() {
    stream = new EventSource(`/api/changes/stream?after=${encodeURIComponent(after)}`);
    stream.addEventListener("open", () => say("Listening."));
    stream.addEventListener("change", (event) => {
      add(feed, JSON.parse(event.data));
      after = event.lastEventId;
      count += 1;
      counter.textContent = `Changes so far: ${count}.`;
    });
    stream.addEventListener("error", () => {
      const over = stream.readyState === EventSource.CLOSED;
      say(over ? "The feed ended: load this page again." : "The connection is lost; it is tried again.");
    });
  }

  function pause() {
    stream?.close();
    say("Paused.");
  }

  // Connections are few (runs.js): a window that nobody looks at needs none.
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : listen()));
  if (!document.hidden) listen();
}
