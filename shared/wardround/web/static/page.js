"use strict";
/* Keeps what stands on the page true while it is open. Without this file a page works too: load it again. */
(() => {
  const events = document.documentElement.dataset.events;
  const busy = (part) => part.contains(document.activeElement) && document.activeElement !== document.body;

  async function refresh() {
    const answer = await fetch(location.href, { headers: { "X-Live": "1" }, redirect: "error" });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (!other || other.isEqualNode(part) || busy(part)) continue; // nobody's typing is taken away
      part.replaceWith(document.importNode(other, true));
    }
    const parts = "[data-live]"; // a page that has got other parts is loaded anew, unless somebody is at it
    if (fresh.querySelectorAll(parts).length !== document.querySelectorAll(parts).length && !busy(document.body)) location.reload();
    const news = [];
    for (const part of document.querySelectorAll("[data-news]")) {
      const other = fresh.getElementById(part.id);
      if (!other || other.textContent === part.textContent) continue;
      part.replaceChildren(...document.importNode(other, true).childNodes);
      news.push(part.textContent);
    }
    if (news.length) document.getElementById("spoken").textContent = news.join(" "); // a live region, spoken politely
  }

  const sent = new Set(); // of a double click the second is no other wish; the server bears it, and answers with an error
  addEventListener("submit", (event) => sent.has(event.target) ? event.preventDefault() : sent.add(event.target));
  addEventListener("pageshow", () => sent.clear());

  let under_way = false, again = false; // one at a time, and one more for what came meanwhile
  async function soon() {
    if (under_way) { again = true; return; }
    under_way = true;
    do { again = false; await refresh().catch(() => {}); } while (again);
    under_way = false;
  }

  if (events && document.querySelector("[data-live], [data-news]")) {
    let stream = null;
    const listen = () => { if (!stream) { stream = new EventSource(events); stream.addEventListener("changed", soon); } };
    const rest = () => { stream?.close(); stream = null; };
    const look = () => document.hidden ? rest() : listen(); // a tab that nobody sees holds no connection
    look();
    addEventListener("visibilitychange", look);
    addEventListener("pagehide", rest);
    addEventListener("pageshow", (event) => { if (event.persisted) look(); });
  }
})();
