// What every page does: theme, copying, confirmations, and lists that are not refreshed while someone chooses in them.
"use strict";

const say = (text) => { document.getElementById("said").textContent = text; };

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `hone_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
  document.dispatchEvent(new Event("theme-changed"));
  say(`${root.dataset.theme} theme`);
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    return; // no clipboard over plain http to another machine; the text stands beside the button
  }
  button.classList.add("done");
  say("Copied");
  setTimeout(() => button.classList.remove("done"), 1500);
}

const chosen = () => document.querySelectorAll('input[name="job"]:checked').length;

function countChosen() {
  const button = document.querySelector("[data-compare]");
  if (button) button.disabled = chosen() < 2 || chosen() > 6;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-theme-toggle], [data-copy]");
  if (!button) return;
  if (button.matches("[data-copy]")) copy(button);
  else toggleTheme();
});

// While signing out is under way: a part that is refreshed without a session would reload the page, and lead back to it.
let signingOut = false;

document.addEventListener("submit", (event) => {
  const form = event.target;
  signingOut ||= form.getAttribute("action") === "/sign-out";
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) {
    event.preventDefault();
    return;
  }
  if ("submitOnce" in form.dataset) {
    const button = form.querySelector("button:not([type=button])");
    setTimeout(() => { if (button) button.disabled = true; });
  }
});

// A page that comes back out of the browser's cache would keep its button disabled.
addEventListener("pageshow", () => document.querySelectorAll("[data-submit-once] button").forEach((button) => { button.disabled = false; }));

document.addEventListener("change", (event) => { if (event.target.matches('input[name="job"]')) countChosen(); });

document.addEventListener("htmx:before:request", (event) => {
  const list = event.target.closest?.("[data-live-list]");
  if (signingOut || document.hidden || (list && event.target === list && chosen() > 0)) event.preventDefault();
});

document.addEventListener("htmx:before:response", (event) => { if (signingOut) event.preventDefault(); });

addEventListener("pageshow", () => { signingOut = false; countChosen(); });
