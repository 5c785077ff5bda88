// A page as served is complete without scripts; these keep it up to date.
import { follow } from "./changes.js";
import { keepFresh } from "./live.js";
import { unwatchRuns, watchRuns } from "./runs.js";
import { localise } from "./times.js";

function arrange(part) {
  localise(part);
  watchRuns(part, refresh);
}

const refresh = keepFresh(arrange);
arrange(document);
follow(document.getElementById("feed"));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return unwatchRuns();
  watchRuns(document, refresh);
  refresh();
});

const thread = document.querySelector("[data-follow]");
if (thread && !location.hash) thread.lastElementChild?.scrollIntoView({ block: "end", behavior: "instant" });
