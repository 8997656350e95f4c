"""The frame of an HTML page that loads nothing: its styles, for light and dark paper."""

from __future__ import annotations

from html import escape
from string import Template

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fff; --faint: #5f6978; --mark: #2b6cb0;
  --band: #2b6cb033; --bad: #b42318; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --paper: #14181f; --faint: #8a93a3;
  --mark: #63a4e8; --band: #63a4e833; --bad: #ff8a7a; --good: #5fd07f; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; }
svg { width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--faint); font-size: 10px; }
.wide { overflow-x: auto; } .wide th, .wide td { white-space: nowrap; }
.bad { color: var(--bad); } .good { color: var(--good); } .note { color: var(--faint); }
td.text { white-space: pre-wrap; }
/* On a phone: fewer and larger numbers, and the cells of a sample below each other. */
@media (max-width: 40rem) {
  svg text { font-size: 17px; } svg .minor { display: none; }
  .samples tr:first-child { display: none; }
  .samples tr { display: block; padding: .6rem 0; border-bottom: 1px solid #8884; }
  .samples td { display: block; padding: .1rem 0; border: 0; }
  .samples td::before { content: attr(data-name) ": "; color: var(--faint); }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, body: str) -> str:
    """Return a page.

    Args:
        title: as text.
        body: as HTML.
    """
    return _PAGE.substitute(title=escape(title), body=body)
