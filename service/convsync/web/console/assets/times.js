// Times are served in UTC and shown in the reader's zone; the days of a thread are the reader's days then.
const styles = {
  full: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }),
  clock: new Intl.DateTimeFormat(undefined, { timeStyle: "short" }),
  day: new Intl.DateTimeFormat("en-GB", { dateStyle: "full" }),
};

export function localise(part) {
  for (const element of part.querySelectorAll("time:not([title])")) {
    element.title = element.textContent;
    element.textContent = styles[element.dataset.style ?? "full"].format(new Date(element.dateTime));
  }
  const thread = part.id === "thread" ? part : part.querySelector?.("#thread");
  if (thread?.querySelector("li")) byDay(thread);
}

function byDay(thread) {
  const days = [];
  for (const entry of thread.querySelectorAll("li")) {
    const name = styles.day.format(new Date(entry.querySelector("time").dateTime));
    if (days.at(-1)?.name !== name) days.push({ name, entries: [] });
    days.at(-1).entries.push(entry);
  }
  thread.replaceChildren(...days.map(section));
}

function section({ name, entries }) {
  const made = document.createElement("section");
  made.setAttribute("aria-label", name);
  const heading = document.createElement("h2");
  heading.className = "day";
  heading.textContent = name;
  const list = document.createElement("ol");
  list.append(...entries);
  made.append(heading, list);
  return made;
}
