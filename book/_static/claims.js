// A filter over the claims of a page: by verdict, by part, by who says it. Without it all are shown.
(() => {
  const start = () => {
    const claims = [...document.querySelectorAll(".claim")];
    if (!claims.length) return;
    const of = (claim, kind) => [...claim.classList].find((name) => name.startsWith(`${kind}-`));
    const words = {
      verdict: (claim) => claim.querySelector(".claim-verdict").textContent,
      part: (claim) => claim.closest("section").querySelector("h2, h3").firstChild.textContent,
      who: (claim) => ({ "who-notes": "the notes", "who-ours": "this book" })[of(claim, "who")] ?? "papers",
    };
    const labels = { verdict: "Verdict", part: "Part", who: "Said by" };

    const form = document.createElement("form");
    form.className = "claims-filter";
    form.setAttribute("aria-label", "Filter the claims");
    for (const kind of Object.keys(words)) {
      const label = document.createElement("label");
      const select = document.createElement("select");
      select.name = kind;
      const found = new Map(claims.map((claim) => [of(claim, kind), words[kind](claim)]));
      select.append(new Option("all", ""));
      for (const [value, text] of found) select.append(new Option(text, value));
      label.append(labels[kind], select);
      form.append(label);
    }
    const said = document.createElement("output");
    form.append(said);
    form.addEventListener("submit", (event) => event.preventDefault());

    const show = () => {
      const chosen = [...form.querySelectorAll("select")].map((select) => select.value).filter(Boolean);
      for (const claim of claims) claim.hidden = !chosen.every((name) => claim.classList.contains(name));
      const shown = claims.filter((claim) => !claim.hidden).length;
      said.value = `${shown} of ${claims.length} claims`;
      for (const section of new Set(claims.map((claim) => claim.closest("section"))))
        section.hidden = !section.querySelector(".claim:not([hidden])");
    };
    // A link to a claim shows it, whatever was chosen.
    const follow = () => {
      const target = location.hash.startsWith("#claim-") && document.getElementById(location.hash.slice(1));
      if (!target?.hidden) return;
      form.reset();
      show();
      target.scrollIntoView();
    };
    form.addEventListener("change", show);
    addEventListener("hashchange", follow);
    claims[0].closest("section").before(form);
    show();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
