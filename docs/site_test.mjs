// Reads the built site in Chromium as its readers do, and prints one line a finding; exit code 1 if there is one.
//   node docs/site_test.mjs [SITE=build/site] [--pages a.html,b.html | --sample N] [--shots DIR]
import { mkdir, readFile, readdir } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, normalize, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';
import { DEFINE } from './in_page.mjs';

const THEMES = ['light', 'dark'];
const DESK = { width: 1280, height: 800 }, PHONE = { width: 390, height: 844 };
const SCROLLS_ON_A_PHONE = 'pre, table, div.math-wrapper';
const TABS = 12;
const SEARCH = { query: 'importance', title: /LoRA|Adapters/ };
const AXE = fileURLToPath(new URL('node_modules/axe-core/axe.min.js', import.meta.url));
const ACCESSIBILITY = { runOnly: ['wcag2a', 'wcag2aa'], resultTypes: ['violations'], preload: false };
const STILL = '*, ::before, ::after { transition: none !important; animation: none !important }';
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost'];
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css',
  '.json': 'application/json', '.txt': 'text/plain',
  '.svg': 'image/svg+xml', '.png': 'image/png', '.jpg': 'image/jpeg' };

// -- shared with lab_test.mjs

export const launch = () =>
  chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });

// `note(check, text)` gets what goes wrong while pages load. FLAGS block requests to other hosts, here they are noted.
export function watch(page, origin, note) {
  const isOutside = url => /^(http|ws)/.test(url) && !url.startsWith(origin + '/');
  page.on('console', m => m.type() === 'error' && !m.text().startsWith('Failed to load') && note('console', m.text()));
  page.on('pageerror', error => note('script', error.message));
  page.on('request', r => isOutside(r.url()) && note('outside', `asks ${r.url()}`));
  page.on('websocket', w => isOutside(w.url().replace(/^ws/, 'http')) && note('outside', `asks ${w.url()}`));
  page.on('response', r => r.status() >= 400 && note('request', `${r.status()} ${r.url().replace(origin, '')}`));
}

// -- the site as files

async function filesOf(folder) {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter(e => e.isFile()).map(e => join(e.parentPath ?? e.path, e.name));
  return files.map(f => f.slice(normalize(folder + sep).length).split(sep).join('/')).sort();
}

function serve(folder) {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname));
    const file = join(folder, path.endsWith('/') ? path + 'index.html' : path);
    const body = await readFile(file).catch(() => null);
    const type = TYPES[extname(file)] ?? 'application/octet-stream';
    response.writeHead(body ? 200 : 404, { 'content-type': type, 'cache-control': 'max-age=600' });
    response.end(body);
  });
  return new Promise(ready => server.listen(0, 'localhost', () => ready(server)));
}

function parsePage(html) {
  const markup = html.replace(/<!--[^]*?-->/g, '').replace(/(<script[^>]*>)[^]*?<\/script>/g, '$1');
  const values = name => [...markup.matchAll(new RegExp(`\\s${name}="([^"]*)"`, 'g'))].map(m => m[1]);
  return { ids: new Set([...values('id'), ...values('name')]), links: new Set(values('href')) };
}

function deadLink(link, path, files, pages) {
  const url = new URL(link.replaceAll('&amp;', '&'), `http://site/${path}`);
  if (url.origin !== 'http://site') return;
  const target = decodeURIComponent(url.pathname).slice(1).replace(/(^|\/)$/, '$1index.html');
  const anchor = decodeURIComponent(url.hash.slice(1));
  if (!files.has(target)) return `no file ${target}`;
  if (anchor && pages[target] && !pages[target].ids.has(anchor)) return `no anchor #${anchor} in ${target}`;
}

async function checkLinks(folder, files, report) {
  const html = files.filter(f => f.endsWith('.html'));
  const read = async path => [path, parsePage(await readFile(join(folder, path), 'utf8'))];
  const pages = Object.fromEntries(await Promise.all(html.map(read)));
  for (const path of html) for (const link of pages[path].links) {
    const fault = deadLink(link, path, new Set(files), pages);
    if (fault) report(path, 'link', `${link}: ${fault}`);
  }
}

// -- the site in the browser

async function checkFocus(page, note) {
  await page.evaluate(() => siteTest.rememberLooks());
  for (let i = 0; i < TABS; i++) {
    await page.keyboard.press('Tab');
    const fault = await page.evaluate(() => siteTest.focusFault());
    if (fault === 'end') return;
    if (fault) note('focus', fault);
  }
}

async function checkAccessibility(page, note) {
  await page.evaluate(() => siteTest.thinOut());
  await page.addScriptTag({ path: AXE });
  const { violations } = await page.evaluate(options => {
    window.axe.configure({ rules: [{ id: 'color-contrast', selector: '[data-look]' }] });
    return window.axe.run(options);
  }, ACCESSIBILITY);
  for (const { id, nodes } of violations) {
    note('axe', `${id}, ${nodes.length} times, first ${nodes[0].target.join(' ')}`);
  }
}

async function checkLayout(page, size, note) {
  const mayScroll = size === PHONE ? SCROLLS_ON_A_PHONE : null;
  await page.setViewportSize(size);
  for (const fault of await page.evaluate(() => siteTest.pageOverflow())) note('overflow', fault);
  for (const fault of await page.evaluate(tags => siteTest.clippedBoxes(tags), mayScroll)) note('box', fault);
}

async function checkContent(page, note) {
  for (const fault of await page.evaluate(() => siteTest.imageFaults())) note('image', fault);
  for (const fault of await page.evaluate(() => siteTest.mathFaults())) note('math', fault);
  await checkFocus(page, note);
  await checkAccessibility(page, note);
}

async function openPage(context, origin, path, note) {
  const page = await context.newPage();
  watch(page, origin, note);
  await page.goto(`${origin}/${path}`);
  await page.addStyleTag({ content: STILL });
  await page.evaluate(DEFINE);
  await page.evaluate(() => siteTest.settle());
  return page;
}

async function checkPage(context, origin, path, theme, shots, report) {
  const noteAt = size => (check, text) => report(path, check, text, `${theme} ${size.width}`);
  const page = await openPage(context, origin, path, noteAt(DESK));
  for (const size of [PHONE, DESK]) {
    await checkLayout(page, size, noteAt(size));
    const name = `${path.replaceAll('/', '-').replace('.html', '')}-${theme}-${size.width}.png`;
    if (shots) await page.screenshot({ path: join(shots, name), fullPage: true });
  }
  await checkContent(page, noteAt(DESK));
  await page.close();
}

async function newContext(browser, theme) {
  const context = await browser.newContext({ colorScheme: theme, viewport: DESK });
  await context.addInitScript(value => localStorage.setItem('theme', value), theme);
  return context;
}

async function checkTheme(browser, origin, paths, theme, shots, report) {
  const context = await newContext(browser, theme);
  for (const path of paths) {
    await checkPage(context, origin, path, theme, shots, report)
      .catch(error => report(path, 'page', error.message.split('\n')[0], theme));
  }
}

async function checkSearch(browser, origin, report) {
  const note = (check, text) => report('search', check, text);
  const page = await openPage(await newContext(browser, THEMES[0]), origin, 'index.html', note);
  const box = page.locator('input[name=q]').first();
  if (!await box.count()) return note('search', 'the first page has no search box');
  await box.fill(SEARCH.query);
  await box.press('Enter');
  const hits = page.locator('#search-results li a');
  const found = hits.filter({ hasText: SEARCH.title }).first().waitFor({ timeout: 30_000 });
  await found.catch(async () =>
    note('search', `“${SEARCH.query}” finds ${await hits.count()} pages, none ${SEARCH.title}`));
}

// -- the command

function choose(pages, { pages: names, sample }) {
  if (names) return names.split(',');
  const step = sample ? Math.max(1, pages.length / sample) : 1;
  return pages.filter((_, i) => Math.floor(i / step) !== Math.floor((i - 1) / step));
}

function collector() {
  const findings = new Map();
  const report = (path, check, text, variant) => {
    const line = `${path}: ${check}: ${text.replace(/\s+/g, ' ')}`;
    findings.set(line, new Set([...findings.get(line) ?? [], ...(variant ? [variant] : [])]));
  };
  const print = () => [...findings].sort().forEach(([line, seen]) =>
    console.log(seen.size ? `${line} [${[...seen].sort().join(', ')}]` : line));
  return { findings, report, print };
}

async function main() {
  const options = Object.fromEntries(['pages', 'sample', 'shots'].map(name => [name, { type: 'string' }]));
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const folder = positionals[0] ?? 'build/site', started = Date.now();
  const files = await filesOf(folder), paths = choose(files.filter(f => f.endsWith('.html')), values);
  if (values.shots) await mkdir(values.shots, { recursive: true });
  const { findings, report, print } = collector();
  const server = await serve(folder), origin = `http://localhost:${server.address().port}`, browser = await launch();
  await Promise.all([checkLinks(folder, files, report), checkSearch(browser, origin, report),
    ...THEMES.map(theme => checkTheme(browser, origin, paths, theme, values.shots, report))]);
  await browser.close();
  server.close();
  print();
  const seconds = Math.round((Date.now() - started) / 1000);
  console.log(`${paths.length} pages, ${2 * THEMES.length} variants, ${findings.size} findings, ${seconds} seconds`);
  process.exitCode = findings.size ? 1 : 0;
}

if (process.argv[1] === import.meta.filename) await main();
