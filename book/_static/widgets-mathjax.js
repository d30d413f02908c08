// ipywidgets 8 typesets its labels through MathJax 2's Hub.Queue(["Typeset", Hub, element]) and writes
// formulas between dollars. Give MathJax 3 that entry point; it reads \(…\) in elements of one class.
// The widgets render on the window's load event; this listener is registered first, so it runs first.
window.addEventListener("load", () => {
  const mathjax = window.MathJax;
  if (!mathjax || mathjax.Hub) return;

  const prepare = (element) => {
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const node = texts.currentNode;
      node.data = node.data.replace(/\$([^$]+)\$/g, "\\($1\\)");
    }
    element.classList.add("mathjax_process");
    return element;
  };

  mathjax.Hub = {
    Queue: (...calls) =>
      mathjax.startup.promise.then(() => mathjax.typesetPromise(calls.map((call) => prepare(call[2])))),
  };
});
