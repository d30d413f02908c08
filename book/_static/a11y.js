// Names for what the theme and ipywidgets leave nameless, so that the pages pass axe-core in both themes.
(() => {
  const name = (selector, label) =>
    document.querySelectorAll(`${selector}:not([aria-label])`).forEach((element, index) => {
      const text = typeof label === "function" ? label(element, index) : label;
      if (text) element.setAttribute("aria-label", text);
    });

  // Visible text and another aria-label at once: the text wins.
  const dropLabels = () =>
    document
      .querySelectorAll(
        ".search-button-field[aria-label], .theme-switch-button[aria-label], .cell summary[aria-label]",
      )
      .forEach((element) => element.removeAttribute("aria-label"));

  const nameRegions = () =>
    document
      .querySelectorAll(".sidebar-primary-items__start > .sidebar-primary-item:first-child")
      .forEach((element) => {
        element.setAttribute("role", "region");
        element.setAttribute("aria-label", "Book title");
      });

  const nameToggles = () =>
    name("summary:has(> .toctree-toggle)", (toggle) => {
      const page = toggle.closest("li")?.querySelector("a");
      return `Pages below ${page?.textContent.trim() ?? "this one"}`;
    });

  // The empty corner of a table heads nothing.
  const emptyCorners = () =>
    document.querySelectorAll("thead th").forEach((header) => {
      if (header.textContent.trim() || header.querySelector("img")) return;
      const corner = document.createElement("td");
      corner.append(...header.childNodes);
      header.replaceWith(corner);
    });

  // The children of a list must be list items; "doc-biblioentry" is deprecated.
  const nameEntries = () =>
    document
      .querySelectorAll("[role=doc-biblioentry]")
      .forEach((entry) => entry.setAttribute("role", "listitem"));

  const nameWidgets = () => {
    name(".noUi-handle", (handle) => {
      const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
      return label?.textContent.trim() || "slider";
    });
    name(".widget-play button", (_, index) => ["play or pause", "stop", "repeat"][index % 3]);
    document.querySelectorAll("img.widget-image:not([alt])").forEach((image) => {
      const heading = image.closest("section")?.querySelector("h1, h2, h3");
      image.alt = image.title || `${heading?.firstChild?.textContent.trim() ?? "Figure"}: the frame that the control chose`;
    });
  };

  const repair = () => {
    dropLabels();
    nameRegions();
    nameToggles();
    emptyCorners();
    nameEntries();
    nameWidgets();
  };

  const start = () => {
    repair();
    new MutationObserver(repair).observe(document.body, { childList: true, subtree: true });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
