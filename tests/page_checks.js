// What the tests of the book's pages ask of a page; each function stands alone.

// Leftmost and rightmost edge of what is shown and not inside a box that scrolls, and the width that the page scrolls to.
const edges = () => {
  const scrolls = (e) =>
    e && e !== document.body && (/(auto|scroll)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const boxes = [...document.querySelectorAll(".bd-article *, .bd-header-article *")]
    .filter((e) => e.getClientRects().length && getComputedStyle(e).visibility !== "hidden")
    .filter((e) => !e.closest("svg, mjx-container, .visually-hidden, .headerlink") && !scrolls(e.parentElement))
    .map((e) => e.getBoundingClientRect())
    .filter((box) => box.width > 1);
  const left = Math.min(...boxes.map((box) => box.left));
  const right = Math.max(...boxes.map((box) => box.right));
  return [left, right, document.documentElement.scrollWidth];
};

// The text of least contrast against its ground (WCAG 2): the ratio, and which it is.
const contrast = () => {
  const parse = (colour) => {
    const numbers = colour.match(/[\d.]+/g).map(Number);
    return numbers.length < 4 ? [...numbers, 1] : numbers;
  };
  const linear = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const ground = (e) => (e ? over(parse(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255]);
  const shown = [...document.querySelectorAll(".bd-article *")]
    .filter((e) => e.getClientRects().length && !e.matches(".headerlink, svg *, mjx-container *, .visually-hidden"))
    .filter((e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  const ratios = shown.map((e) => {
    const below = ground(e);
    const [x, y] = [luminance(below), luminance(over(parse(getComputedStyle(e).color), below))];
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    return [ratio, `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`];
  });
  return ratios.sort((a, b) => a[0] - b[0])[0] ?? [21, "no text"];
};

// Equations: those set, and those that are still TeX or an error.
const equations = () => {
  const all = [...document.querySelectorAll(".math")];
  const set = all.filter((e) => e.querySelector("mjx-container svg") && !e.querySelector('[data-mml-node="merror"], [fill="red"]'));
  return [set.length, all.length - set.length];
};
