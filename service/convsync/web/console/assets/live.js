// Regions with data-live="seconds" are asked for again, as the server renders them, and put in place of what is there.
const connection = document.getElementById("connection");

function say(text) {
  if (connection.textContent !== text) connection.textContent = text;
}

let pressed = false;
document.addEventListener("pointerdown", () => (pressed = true));
// A context menu, or the list of a select, may take the release for itself.
for (const end of ["pointerup", "pointercancel", "contextmenu"]) document.addEventListener(end, () => (pressed = false));
document.addEventListener("pointermove", (event) => (pressed &&= event.buttons > 0));

// Whoever is selecting or pressing something in a region is not disturbed.
function inUse(region) {
  const selection = getSelection();
  return pressed || (!selection.isCollapsed && region.contains(selection.anchorNode));
}

// What takes the focus, and what tells one from another when the region was put in place anew.
function takers(region) {
  return [...region.querySelectorAll("a, button, summary, [tabindex]")];
}

function sameness(one) {
  const of = (name) => one.getAttribute(name) ?? "";
  return [one.tagName, of("href"), one.form?.getAttribute("action") ?? "", of("aria-label"), of("aria-labelledby")].join(" ");
}

function put(region, nodes) {
  const focused = region.contains(document.activeElement) ? document.activeElement : null;
  const same = focused && takers(region).filter((one) => sameness(one) === sameness(focused));
  const scrolled = focused?.scrollLeft;
  region.replaceChildren(...nodes);
  if (!focused) return;
  const again = takers(region).filter((one) => sameness(one) === sameness(focused))[same.indexOf(focused)];
  (again ?? document.getElementById("main")).focus({ preventScroll: true });
  if (again) again.scrollLeft = scrolled;
}

function atTheEnd() {
  return innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
}

export function keepFresh(arrange) {
  const address = document.getElementById("main").dataset.address;
  const regions = [...document.querySelectorAll("[data-live]")];
  const served = new Map(regions.map((region) => [region, region.innerHTML]));
  let asking = null;

  async function ask() {
    try {
      const answer = await fetch(address, { headers: { Accept: "text/html" } });
      if (answer.redirected && new URL(answer.url).pathname === "/console/login") return location.reload();
      if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const region of regions) {
        const now = fresh.getElementById(region.id);
        if (!now || served.get(region) === now.innerHTML || inUse(region)) continue;
        const follows = "follow" in region.dataset && atTheEnd();
        served.set(region, now.innerHTML);
        put(region, now.childNodes);
        arrange(region);
        if (follows) region.lastElementChild?.scrollIntoView({ block: "end" });
      }
      say("");
    } catch (error) {
      say(`· not up to date: ${error.message}`);
    }
  }

  if (!address || !regions.length) return () => {};
  // One question at a time, whoever asks for it.
  const refresh = () => (asking ??= ask().finally(() => (asking = null)));
  const seconds = Math.min(...regions.map((region) => Number(region.dataset.live)));
  setInterval(() => document.hidden || refresh(), seconds * 1000);
  return refresh;
}
