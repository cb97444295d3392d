// Runs a notebook in JupyterLab as a reader does, and prints one line a finding; exit code 1 if there is one.
//   node docs/lab_test.mjs [NOTEBOOK=nbs/tutorials/quickstart.ipynb] [--shots DIR] [--minutes 5]
// JUPYTER names the program (default .venv/bin/jupyter). The notebook runs as a copy in an empty folder.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { launch, watch } from './site_test.mjs';

const JUPYTER = resolve(process.env.JUPYTER ?? '.venv/bin/jupyter');
const OPTIONS = ['--no-browser', '--allow-root', '--expose-app-in-browser', '--ServerApp.token=',
  '--ServerApp.password='];
const FIGURE = /^#\| fig-cap/m, HIGHEST = 12_000;

// Every cell stays in the page, and nothing asks for news.
const SETTINGS = {
  '@jupyterlab/notebook-extension/tracker': { windowingMode: 'none', scrollPastEnd: false },
  '@jupyterlab/apputils-extension/notification': { fetchNews: 'false', checkForUpdates: false },
};

async function freePort() {
  const server = createServer().listen(0, 'localhost');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  return port;
}

async function writeSettings(home) {
  for (const [name, values] of Object.entries(SETTINGS)) {
    const file = join(home, 'lab/user-settings', `${name}.jupyterlab-settings`);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, JSON.stringify(values));
  }
}

async function startLab(work, home) {
  if (!existsSync(JUPYTER)) throw new Error(`no ${JUPYTER}: JUPYTER names the program`);
  const port = await freePort(), origin = `http://localhost:${port}`;
  const env = { ...process.env, HOME: home, JUPYTER_CONFIG_DIR: home, HF_HUB_OFFLINE: '1' };
  const options = [...OPTIONS, `--port=${port}`, `--ServerApp.root_dir=${work}`];
  const lab = spawn(JUPYTER, ['lab', ...options], { cwd: work, env, stdio: 'ignore' });
  for (let i = 0; i < 120 && lab.exitCode === null; i++) {
    if (await fetch(`${origin}/api`).then(answer => answer.ok, () => false)) return { lab, origin };
    await sleep(500);
  }
  lab.kill();
  throw new Error(`${JUPYTER} lab does not answer`);
}

async function stopLab(lab) {
  lab.kill();
  if (lab.exitCode === null) await once(lab, 'exit');
}

// In the page: the menu's command, as soon as the kernel answers.
async function runAllCells() {
  const { commands, shell } = window.jupyterapp, { context, sessionContext } = shell.currentWidget;
  await context.ready;
  await sessionContext.ready;
  await sessionContext.session.kernel.info;
  await commands.execute('notebook:run-all-cells');
}

async function runNotebook(page, minutes) {
  await page.locator('.jp-Notebook .jp-CodeCell').first().waitFor({ timeout: 60_000 });
  const tooLate = sleep(minutes * 60_000, 'too late', { ref: false });
  const end = await Promise.race([page.evaluate(runAllCells), tooLate]);
  if (end) throw new Error(`cells still run after ${minutes} minutes`);
}

// In the page. A figure counts when it is drawn.
function readOutputs() {
  const { cells } = window.jupyterapp.shell.currentWidget.content.model.toJSON();
  const code = cells.filter(cell => cell.cell_type === 'code'), outputs = code.flatMap(cell => cell.outputs);
  const figures = [...document.querySelectorAll('.jp-OutputArea-output :is(img, svg)')];
  return {
    errors: outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
    warnings: outputs.filter(o => o.name === 'stderr').length,
    run: code.filter(cell => cell.execution_count).length,
    figures: figures.filter(el => el.clientWidth > 50 && el.naturalWidth !== 0).length,
  };
}

// In the page: to the first cell; returns how high the notebook is.
function scrollToTop() {
  const box = document.querySelector('.jp-WindowedPanel-outer');
  box.scrollTop = 0;
  return box.scrollHeight;
}

async function storeScreens(page, name, folder) {
  await mkdir(folder, { recursive: true });
  const height = await page.evaluate(scrollToTop);
  await page.screenshot({ path: join(folder, `${name}-lab.png`) });
  await page.setViewportSize({ width: 1280, height: Math.min(height + 200, HIGHEST) });
  await page.evaluate(scrollToTop);
  await page.screenshot({ path: join(folder, `${name}-lab-whole.png`) });
}

async function codeCells(notebook) {
  const { cells } = JSON.parse(await readFile(notebook, 'utf8'));
  const sources = cells.filter(cell => cell.cell_type === 'code').map(cell => [cell.source].flat().join(''));
  return sources.filter(source => source.trim());
}

function compare(seen, sources) {
  const figures = sources.filter(source => FIGURE.test(source)).length;
  const findings = seen.errors.map(error => `error: ${error}`);
  if (seen.run < sources.length) findings.push(`cells: ${seen.run} of ${sources.length} code cells ran`);
  if (seen.figures < figures) findings.push(`figures: ${seen.figures}, but ${figures} cells have a caption`);
  return findings;
}

async function testNotebook(browser, origin, notebook, { shots, minutes }) {
  const findings = [], page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  watch(page, origin, (check, text) => ['outside', 'script'].includes(check) && findings.push(`${check}: ${text}`));
  await page.goto(`${origin}/lab/tree/${basename(notebook)}`);
  await runNotebook(page, Number(minutes ?? 5)).catch(error => findings.push(`lab: ${error.message.split('\n')[0]}`));
  const seen = await page.evaluate(readOutputs);
  if (shots) await storeScreens(page, basename(notebook, '.ipynb'), shots);
  return { seen, findings: [...findings, ...compare(seen, await codeCells(notebook))] };
}

async function main() {
  const options = Object.fromEntries(['shots', 'minutes'].map(name => [name, { type: 'string' }]));
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const notebook = positionals[0] ?? 'nbs/tutorials/quickstart.ipynb', started = Date.now();
  const work = await mkdtemp(join(tmpdir(), 'lab-')), home = await mkdtemp(join(tmpdir(), 'lab-home-'));
  await copyFile(notebook, join(work, basename(notebook)));
  await writeSettings(home);
  const { lab, origin } = await startLab(work, home), browser = await launch();
  try {
    const { seen, findings } = await testNotebook(browser, origin, notebook, values);
    findings.forEach(line => console.log(line));
    console.log(`${seen.run} code cells ran, ${seen.figures} figures, ${seen.warnings} outputs on stderr, ${
      findings.length} findings, ${Math.round((Date.now() - started) / 1000)} seconds`);
    process.exitCode = findings.length ? 1 : 0;
  } finally {
    await browser.close();
    await stopLab(lab);
    for (const folder of [work, home]) await rm(folder, { recursive: true, force: true });
  }
}

await main();
