// What the pages do better with scripts. Without them everything works: a live run's page reloads
// itself, a picture is chosen with the browser's own button, and code is copied by hand.
"use strict";

const REFRESH_MS = 2000;

function keepLive(place) {
  const again = () => window.setTimeout(refresh, REFRESH_MS);

  async function refresh() {
    if (document.hidden) {
      again();
      return;
    }
    try {
      const answer = await fetch(place.dataset.refresh, { credentials: "same-origin" });
      if (answer.redirected || answer.status === 404) {
        window.location.reload(); // signed out meanwhile, or the report was deleted
        return;
      }
      if (answer.ok) {
        replace(place, await answer.text());
      }
    } catch {
      // The server is away for a moment: the next try tells.
    }
    if (isLive(place)) {
      again();
    }
  }

  if (isLive(place)) {
    again();
  }
}

function isLive(place) {
  return place.querySelector("[data-live=yes]") !== null;
}

function replace(place, text) {
  const fresh = new DOMParser().parseFromString(text, "text/html").body;
  for (const open of place.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${open.id}`)?.setAttribute("open", "");
  }
  // A reader of the page who is inside of what changes stays where they are.
  if (place.contains(document.activeElement) && document.activeElement !== document.body) {
    const inside = [...place.querySelectorAll("[tabindex], summary")];
    const index = inside.indexOf(document.activeElement);
    place.replaceChildren(...fresh.childNodes);
    [...place.querySelectorAll("[tabindex], summary")][index]?.focus({ preventScroll: true });
    return;
  }
  place.replaceChildren(...fresh.childNodes);
}

function takePictures(zone) {
  const input = zone.querySelector("input[type=file]");
  const preview = zone.querySelector("[data-preview]");
  const hint = zone.querySelector("[data-hint]");
  hint.textContent = "Drop a picture here, or choose one";

  function show() {
    const file = input.files[0];
    if (preview.src) {
      URL.revokeObjectURL(preview.src);
    }
    preview.hidden = !file;
    hint.hidden = Boolean(file);
    if (file) {
      preview.src = URL.createObjectURL(file);
      preview.alt = `Preview of ${file.name}`;
    } else {
      preview.removeAttribute("src");
    }
  }

  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.remove("over");
    });
  }
  zone.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      show();
    }
  });
  input.addEventListener("change", show);
}

// A button that copies what is shown: a block of code, or a field's value.
function copiedBy(button, shown) {
  const text = shown.value ?? shown.textContent;
  return async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without TLS there is no such clipboard: the reader copies what is selected.
      if (shown.select) {
        shown.select();
      } else {
        window.getSelection().selectAllChildren(shown);
      }
      if (!document.execCommand("copy")) {
        button.textContent = "Selected";
        return;
      }
    }
    button.textContent = "Copied";
  };
}

function offerToCopy(shown) {
  const place = document.createElement("div");
  const button = document.createElement("button");
  place.className = "copy";
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  shown.before(place);
  place.append(shown, button);
  const copy = copiedBy(button, shown);
  button.addEventListener("click", copy);
  button.addEventListener("blur", () => {
    button.textContent = "Copy";
  });
}

function sendOnce(form) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) {
      event.preventDefault();
    }
    form.dataset.sent = "yes";
  });
}

for (const place of document.querySelectorAll("[data-refresh]")) {
  keepLive(place);
}
for (const zone of document.querySelectorAll("[data-drop]")) {
  takePictures(zone);
}
for (const form of document.querySelectorAll("form[method=post]")) {
  sendOnce(form);
}
for (const field of document.querySelectorAll("[data-select]")) {
  field.addEventListener("focus", () => field.select());
}
for (const shown of document.querySelectorAll("[data-copy]")) {
  offerToCopy(shown);
}
document.querySelector("[data-focus]")?.focus();
window.addEventListener("pageshow", (event) => {
  if (event.persisted) {
    for (const form of document.querySelectorAll("form[data-sent]")) {
      delete form.dataset.sent;
    }
  }
});
