// What site_test.mjs asks of an open page. These functions run in the page, and use each other and the document only.

function describe(el) {
  const names = [el.localName, el.id && `#${el.id}`, ...[...el.classList].slice(0, 2).map(c => `.${c}`)].join('');
  const text = el.textContent.trim().replace(/\s+/g, ' ').slice(0, 40);
  return text ? `${names} “${text}”` : names;
}

function pageOverflow() {
  const { scrollWidth, clientWidth } = document.documentElement;
  return scrollWidth > clientWidth ? [`${scrollWidth} pixels wide in a window of ${clientWidth}`] : [];
}

const overflowOf = el => getComputedStyle(el).overflowX;

function isHeld(node, root) {
  for (let box = node.parentElement; box !== root; box = box.parentElement) {
    if (overflowOf(box) !== 'visible') return true;
  }
  return false;
}

// Padding and margins may be wider than the box around them: what counts are words, pictures, code and tables.
function contentEnd(root) {
  const walker = document.createTreeWalker(root), range = document.createRange(), ends = [0];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const isText = node.nodeType === Node.TEXT_NODE;
    const counts = isText ? node.data.trim() : node.matches?.('img, svg, pre, table');
    if (!counts || isHeld(node, root)) continue;
    range.selectNodeContents(node);
    ends.push((isText ? range : node).getBoundingClientRect().right);
  }
  return Math.max(...ends);
}

function boxFault(el, article, mayScroll) {
  const extra = el.scrollWidth - el.clientWidth, overflow = overflowOf(el), { left } = el.getBoundingClientRect();
  if (extra > 1 && ['auto', 'scroll'].includes(overflow)) {
    const accepted = mayScroll && (el.matches(mayScroll) || el.querySelector(mayScroll));
    return accepted ? null : `scrolls by ${extra} pixels`;
  }
  const isCut = extra > 1 && ['hidden', 'clip'].includes(overflow);
  const end = isCut ? left + el.clientLeft + el.clientWidth : article.getBoundingClientRect().right;
  if (!isCut && (overflow !== 'visible' || left + el.scrollWidth <= end + 1 || isHeld(el, article))) return null;
  const out = Math.round(contentEnd(el) - end);
  return out > 1 ? `${isCut ? 'cuts off' : 'sticks out of the text by'} ${out} pixels` : null;
}

// Of boxes inside each other only the innermost is named.
function clippedBoxes(mayScroll) {
  const article = document.querySelector('article') ?? document.querySelector('main') ?? document.body;
  const folded = [...article.querySelectorAll('details:not([open])')];
  folded.forEach(d => { d.open = true; });
  const seen = el => el.clientWidth > 1 && el.checkVisibility() && !el.closest('mjx-assistive-mml');
  const faults = new Map([...article.querySelectorAll('*')].filter(el => el instanceof HTMLElement && seen(el))
    .map(el => [el, boxFault(el, article, mayScroll)]).filter(([, fault]) => fault));
  folded.forEach(d => { d.open = false; });
  const boxes = [...faults.keys()];
  const inner = boxes.filter(el => !boxes.some(other => other !== el && el.contains(other)));
  return inner.map(el => `${describe(el)} ${faults.get(el)}`);
}

function imageFaults() {
  const fault = img => {
    if (!img.naturalWidth) return 'is broken';
    if (!img.alt.trim()) return 'has no alt text';
    if (/\.\w{3,4}$/.test(img.alt.trim())) return `has a file name as alt text: ${img.alt}`;
  };
  return [...document.images].filter(fault).map(img => `${img.getAttribute('src')?.slice(0, 80)} ${fault(img)}`);
}

// MathJax draws an unknown command in red and goes on.
function mathFaults() {
  const fault = el => {
    const drawn = el.querySelectorAll('mjx-container').length;
    if (drawn !== 1) return `${describe(el)} has ${drawn} drawn formulas`;
    const error = el.querySelector('[data-mjx-error], mjx-merror, [data-mml-node="mtext"][fill="red"]');
    return error && `${describe(el)} ${error.dataset.mjxError ?? 'has an unknown command'}`;
  };
  return [...document.querySelectorAll('.math')].map(fault).filter(Boolean);
}

function look(el) {
  const style = getComputedStyle(el);
  const outline = style.outlineStyle === 'none' || style.outlineWidth === '0px' ? 'none' : style.outline;
  return [outline, style.boxShadow, style.backgroundColor].join(' ');
}

const looks = el => look(el) + look(el.parentElement ?? el);

function rememberLooks() {
  siteTest.before = new Map([...document.querySelectorAll('*')].map(el => [el, looks(el)]));
}

function focusFault() {
  const el = document.activeElement;
  if (!el || el === document.body) return 'end';
  if (!el.checkVisibility({ opacityProperty: true, visibilityProperty: true })) return `${describe(el)} is invisible`;
  return looks(el) === siteTest.before.get(el) ? `${describe(el)} looks the same with focus` : null;
}

function isReadable(el) {
  const box = el.getBoundingClientRect();
  const hasText = [...el.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return (hasText || el.matches('input')) && box.width > 1 && box.right > 0
    && el.checkVisibility({ opacityProperty: true, visibilityProperty: true });
}

// Axe takes seconds for the contrast of a thousand words and for the parts of formulas. Three words of each look get
// the mark `data-look`: axe measures their contrast only. The other words of code lose their tags, and formulas go.
function thinOut() {
  const backdrops = new Map(), looks = new Map();
  const backdrop = el => {
    if (!el || backdrops.has(el)) return backdrops.get(el);
    const { backgroundColor, backgroundImage, opacity } = getComputedStyle(el);
    backdrops.set(el, [backgroundColor, backgroundImage, opacity, backdrop(el.parentElement)].join());
    return backdrops.get(el);
  };
  for (const el of [...document.querySelectorAll('*')].filter(isReadable)) {
    const { color, fontSize, fontWeight } = getComputedStyle(el);
    const key = [color, fontSize, fontWeight, backdrop(el)].join();
    looks.set(key, looks.get(key) ?? []);
    looks.get(key).push(el);
  }
  for (const [first, second, third, ...others] of looks.values()) {
    [first, second, third].forEach(el => el?.setAttribute('data-look', ''));
    others.filter(el => el.matches('pre span') && !el.firstElementChild).forEach(el => el.replaceWith(el.textContent));
  }
  document.querySelectorAll('mjx-container').forEach(formula => formula.replaceChildren());
}

async function settle() {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  for (const img of document.images) img.loading = 'eager';
  await Promise.allSettled([...document.images].map(img => img.decode()));
}

const IN_PAGE = { describe, pageOverflow, overflowOf, isHeld, contentEnd, boxFault, clippedBoxes, imageFaults,
  mathFaults, look, looks, rememberLooks, focusFault, isReadable, thinOut, settle };
// A script that gives a page `siteTest.settle()` and the others.
export const DEFINE = `globalThis.siteTest = (() => {
  ${Object.entries(IN_PAGE).map(([name, f]) => `const ${name} = ${f};`).join('\n')}
  return { ${Object.keys(IN_PAGE)} };
})(); 0`;
