"""How pages look, light and dark, and what moves on them.

Colours are named by their use. Text has a contrast of at least 4.5 to what it stands on, in both themes
(Web Content Accessibility Guidelines 2.2, level AA).
"""

from __future__ import annotations

LIGHT = """
  --page: #f6f7f9; --card: #ffffff; --text: #1b2430; --quiet: #566170; --edge: #d9dee5;
  --accent: #1a56b0; --line-1: #1f66c4; --line-2: #b45309; --line-3: #15803d; --line-4: #a21caf;
"""
DARK = """
  --page: #12161c; --card: #1a2029; --text: #e4e9f0; --quiet: #a2adbb; --edge: #333d4a;
  --accent: #8cb8ff; --line-1: #7fb2ff; --line-2: #fbb46a; --line-3: #78d68f; --line-4: #e79bf0;
"""

STYLE = (
    ":root {"
    + LIGHT
    + "color-scheme: light; }\n@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) {"
    + DARK
    + "color-scheme: dark; } }\n:root[data-theme=dark] {"
    + DARK
    + """color-scheme: dark; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--text); background: var(--page); font: 16px/1.6 system-ui, sans-serif; }
a { color: var(--accent); }
.layout { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem 4rem; }
header { display: flex; align-items: baseline; gap: 1rem; padding: 1.75rem 0 0.75rem; }
header > div { flex: 1; min-width: 0; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 0.75rem; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0.5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.quiet, figcaption, th { color: var(--quiet); }
.quiet, figcaption { font-size: 0.875rem; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
          padding: 1.25rem 1.5rem 1.4rem; margin: 0 0 1.25rem; min-width: 0; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.15rem 1.1rem; padding: 0;
         margin: 0 0 1.25rem; }
nav a { display: inline-block; padding: 0.2rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
button { font: inherit; font-size: 0.875rem; color: var(--text); background: var(--card); cursor: pointer;
         border: 1px solid var(--edge); border-radius: 999px; padding: 0.3rem 0.9rem; white-space: nowrap; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.tiles { display: grid; gap: 0.75rem; margin: 1.1rem 0 0.25rem;
         grid-template-columns: repeat(auto-fit, minmax(min(10.5rem, 45%), 1fr)); }
.tile { border: 1px solid var(--edge); border-radius: 8px; padding: 0.6rem 0.9rem; min-width: 0; }
.tile b { display: block; font-size: 1.1rem; line-height: 1.5; font-weight: 650; overflow-wrap: anywhere; }
.tile span { display: block; font-size: 0.8125rem; color: var(--quiet); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 0.5rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 1.5rem 0.3rem 0; overflow-wrap: break-word;
         max-width: 34rem; border-bottom: 1px solid var(--edge); font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
.explained td:not(:first-child) { white-space: nowrap; }
.explained small { display: block; color: var(--quiet); font-size: 0.8125rem; line-height: 1.4; }
tr:last-child td { border-bottom: 0; }
pre { font-size: 0.8rem; }
.pictures { display: grid; gap: 1.25rem; margin: 0.75rem 0; align-items: start;
            grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.pictures.wide { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: 0.35rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; display: block; }
svg { width: 100%; height: auto; display: block; color: var(--text); }
svg text, svg use { fill: currentColor; }
svg text { font-family: system-ui, sans-serif !important; }
summary { cursor: pointer; margin: 0.6rem 0; color: var(--accent); }
.slides { margin: 0.75rem 0; }
.slider, .switch { display: none; }
.js .slider { display: flex; align-items: center; gap: 0.9rem; max-width: 30rem; }
.js .switch { display: inline-block; }
.slider input { flex: 1; min-width: 0; accent-color: var(--accent); }
.slider output { min-width: 7rem; font-variant-numeric: tabular-nums; }
.js .slides .pictures { display: block; }
.js .slides .pictures figure { display: none; }
.js .slides .pictures figure.shown { display: block; }
.js .slides img { width: 26rem; }
@media (min-width: 64rem) {
  .body { display: grid; grid-template-columns: 11.5rem minmax(0, 1fr); gap: 2rem; align-items: start; }
  nav { position: sticky; top: 1.25rem; }
  nav ul { display: block; border-left: 2px solid var(--edge); padding-left: 0.9rem; }
}
@media (max-width: 40rem) {
  .layout { padding: 0 0.75rem 2rem; }
  section { padding: 1rem; }
  h1 { font-size: 1.4rem; }
  th, td { padding-right: 0.9rem; }
  .explained td:not(:first-child) { white-space: normal; }
}
@media print { nav, button, .slider { display: none !important; } section { break-inside: avoid; } }
"""
)

SCRIPT = """
const root = document.documentElement;
root.classList.add('js');
const store = { get() { try { return localStorage.getItem('theme'); } catch { return null; } },
                set(name) { try { localStorage.setItem('theme', name); } catch { return; } } };
const saved = store.get();
if (saved === 'dark' || saved === 'light') root.dataset.theme = saved;
const isDark = () => root.dataset.theme ? root.dataset.theme === 'dark'
                                        : matchMedia('(prefers-color-scheme: dark)').matches;
for (const button of document.querySelectorAll('.switch')) {
  const label = () => { button.textContent = isDark() ? 'Light' : 'Dark'; };
  button.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    store.set(root.dataset.theme);
    label();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', label);
  label();
}
for (const slides of document.querySelectorAll('.slides')) {
  const figures = [...slides.querySelectorAll('figure')];
  const input = slides.querySelector('input'), output = slides.querySelector('output');
  if (!figures.length) continue;
  input.max = input.value = figures.length - 1;
  const show = () => {
    figures.forEach((figure, k) => figure.classList.toggle('shown', k === Number(input.value)));
    output.textContent = figures[input.value].querySelector('figcaption').textContent;
  };
  input.addEventListener('input', show);
  show();
}
"""
