// ipywidgets 8 typesets labels through MathJax 2's Hub.Queue. Give MathJax 3 that entry point.
// The widgets render on the window's load event; this listener is registered first, so it runs first.
window.addEventListener("load", () => {
  const mathjax = window.MathJax;
  if (!mathjax || mathjax.Hub) return;
  mathjax.Hub = {
    Queue: (...calls) =>
      mathjax.startup.promise.then(() => mathjax.typesetPromise(calls.map((call) => call[2]))),
  };
});
