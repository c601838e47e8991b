"""Writes what a check found as one page for a person: no script, no other file, for a telephone and for paper."""

from html import escape

from vitok.clock import isoformat
from vitok.contracts.report import CheckReport, RuleResult
from vitok.errors import ContractBroken

MOST_ROWS = 100
_MOST_COLUMNS = 8
_LONGEST_CELL = 60
_SEVERITY = {"block": "blocks", "quarantine": "takes rows out", "warn": "warns"}

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --sheet: #ffffff; --ink: #1c2126; --soft: #5a626b;
  --line: #e3e0d8; --fine: #f1efe9; --accent: #1d6078; --good: #2a7549; --watch: #8a5a00; --bad: #a23422; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #131619; --sheet: #1a1e22; --ink: #e8e6e0; --soft: #a3abb2; --line: #2e343a; --fine: #22272c;
    --accent: #84c5dc; --good: #74c394; --watch: #e6b659; --bad: #f0907c; }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 64rem; margin: 0 auto; padding: 1.75rem 1.5rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; font-weight: 640; letter-spacing: -0.018em; margin: 0 0 0.35rem; }
h2 { font-size: 1.1rem; line-height: 1.35; font-weight: 640; margin: 2.2rem 0 0.6rem; }
p { margin: 0 0 0.8rem; max-width: 68ch; }
.soft { color: var(--soft); }
.small { font-size: 0.867rem; }
.verdict { display: flex; gap: 0.8rem; align-items: baseline; }
.verdict::before { content: ""; flex: none; width: 0.8rem; height: 0.8rem; border-radius: 50%;
  background: var(--good); }
.verdict.watch::before { background: var(--watch); }
.verdict.bad::before { background: var(--bad); }
.sheet { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px; padding: 0.4rem 1.25rem 0.6rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; margin: 1.2rem 0 0;
  padding: 0; overflow: hidden; background: var(--line); }
.facts > div { background: var(--sheet); padding: 0.8rem 1.25rem 0.9rem; }
.facts dt { color: var(--soft); font-size: 0.867rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; letter-spacing: -0.015em; }
.scroll { overflow-x: auto; margin: 0 -1.25rem; padding: 0 1.25rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 0.5rem 1.1rem 0.5rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 500; font-size: 0.867rem; color: var(--soft); white-space: nowrap; }
tbody th { font-weight: 500; }
th:last-child, td:last-child { padding-right: 0; }
.num { text-align: right; white-space: nowrap; }
.tag { display: inline-block; padding: 0 0.5rem; border-radius: 99px; border: 1px solid currentcolor;
  color: var(--soft); font-size: 0.867rem; line-height: 1.5; white-space: nowrap; }
.tag.bad { color: var(--bad); }
.tag.watch { color: var(--watch); }
.bar { display: block; height: 0.3rem; margin-top: 0.35rem; border-radius: 2px; background: var(--fine);
  min-width: 6rem; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bad); min-width: 2px; }
details { margin-top: 1.4rem; }
summary { cursor: pointer; color: var(--accent); }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
ul { padding-left: 1.2rem; margin: 0.4rem 0; }
code, pre { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 0.9em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.6rem 0; }
.rules th { min-width: 8rem; overflow-wrap: break-word; }
.rows td { max-width: 18rem; overflow-wrap: anywhere; }
.rows td:first-child { min-width: 14rem; }
.rows .near { white-space: nowrap; }
@media (max-width: 40rem) {
  main { padding: 1.2rem 1rem 2rem; }
  .rules thead { position: absolute; left: -99rem; }
  .rules tr { display: block; padding: 0.6rem 0; border-bottom: 1px solid var(--line); }
  .rules tbody tr:last-child { border-bottom: 0; }
  .rules th, .rules td { display: block; border: 0; padding: 0.05rem 0; text-align: left; white-space: normal; }
  .rules td.num, .rules td.num + td { display: inline-block; margin-right: 0.8rem; }
  .rules td[data-name]::before { content: attr(data-name) " "; color: var(--soft); font-size: 0.867rem; }
  .rows thead { position: absolute; left: -99rem; }
  .rows tr { display: block; padding: 0.6rem 0; border-bottom: 1px solid var(--line); }
  .rows td, .rows td:first-child { display: block; border: 0; padding: 0.05rem 0; min-width: 0; max-width: none; }
  .rows td[data-name]::before { content: attr(data-name) ": "; color: var(--soft); font-size: 0.867rem; }
}
@media print { body { background: none; } .sheet { break-inside: avoid; } }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def render(report: CheckReport | ContractBroken, *, now: int | None = None, source: str = "") -> str:
    """Writes a report as one HTML page.

    Args:
        report: What a check found, or the error that it stopped with.
        now: When it was checked, in microseconds; named on the page where given.
        source: What was checked, such as the name of a file.

    Returns:
        The page; it loads nothing and runs nothing, and shows at most 100 rejected rows.

    Example:
        >>> import polars as pl
        >>> from vitok import contracts
        >>> data = pl.DataFrame({"amount": [1.0, 2.0]})
        >>> page = render(contracts.infer(data, name="sales").check(data))
        >>> "All rows keep the contract" in page
        True
    """
    if isinstance(report, ContractBroken):
        body = _blocked(report)
        title = "Data blocked"
    else:
        body = _report(report)
        title = f"{report.contract} {report.version}: {report.n_rejected:,} of {report.n_rows:,} rows rejected"
    told = [text for text in (source, f"checked {isoformat(now)}" if now is not None else "") if text]
    if told:
        body += f'\n<p class="soft small">{escape(", ".join(told))}</p>'
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def _blocked(error: ContractBroken) -> str:
    return "\n".join(
        [
            '<h1 class="verdict bad">The data is blocked</h1>',
            '<p class="soft">No row was accepted: the data as a whole is not what the contract says.</p>',
            f'<div class="sheet"><pre>{escape(str(error))}</pre></div>',
        ]
    )


def _report(report: CheckReport) -> str:
    parts = [_head(report), _facts(report)]
    told = [item for item in report.results if item.status != "passed" or item.observed]
    failed = [item for item in told if item.status == "failed"]
    others = [item for item in told if item.status != "failed"]
    quiet = [item for item in report.results if item.status == "passed" and not item.observed]
    if failed:
        parts += ["<h2>Broken rules</h2>", _rules(failed)]
    if report.n_rejected:
        parts += ["<h2>Rejected rows</h2>", _rejected(report)]
    if others:
        parts += ["<h2>Rules of the whole table</h2>", _rules(others)]
    if quiet:
        parts.append(f"<details><summary>{len(quiet)} other rules hold</summary>{_rules(quiet)}</details>")
    if report.not_checked:
        items = "".join(f"<li>{escape(item)}</li>" for item in report.not_checked)
        count = len(report.not_checked)
        summary = f"<summary>{count} statements of the contract were not checked</summary>"
        parts.append(f"<details>{summary}<ul>{items}</ul></details>")
    return "\n".join(parts)


def _head(report: CheckReport) -> str:
    warned = [item for item in report.failed if item.severity == "warn"]
    if report.n_rejected:
        mood, text = "bad", f"{report.n_rejected:,} of {report.n_rows:,} rows are rejected"
    elif warned:
        mood, text = "watch", f"All rows are accepted, with {len(warned)} warning{'s' if len(warned) > 1 else ''}"
    elif not report.n_rows:
        mood, text = "watch", "There was no row to check"
    else:
        mood, text = "ok", "All rows keep the contract"
    named = f"{report.contract} {report.version}, table {report.table}"
    return f'<h1 class="verdict {mood}">{escape(text)}</h1>\n<p class="soft">Contract {escape(named)}</p>'


def _facts(report: CheckReport) -> str:
    facts = (
        ("Rows", report.n_rows),
        ("Accepted", report.n_accepted),
        ("Rejected", report.n_rejected),
        (f"Rules broken of {sum(item.status != 'skipped' for item in report.results):,}", len(report.failed)),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in facts)
    return f'<dl class="sheet facts">{cells}</dl>'


def _rules(results: list[RuleResult]) -> str:
    rows = "".join(_rule(item) for item in results)
    head = '<tr><th>Rule</th><th>Must</th><th>Seen</th><th class="num">Checked</th><th>If broken</th></tr>'
    return f'<div class="sheet"><table class="rules"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _rule(item: RuleResult) -> str:
    if item.status == "failed" and not item.observed:
        share = 100 * item.n_failed / item.n_checked if item.n_checked else 100
        seen = f"{item.n_failed:,} break it ({share:.2g} percent)"
        if share >= 1:
            seen += f'<span class="bar"><i style="width: {min(100, share):.1f}%"></i></span>'
    else:
        skipped = "not judged: " if item.status == "skipped" else ""
        seen = skipped + escape(item.observed) or "holds"
    mood = ("watch" if item.severity == "warn" else "bad") if item.status == "failed" else ""
    label = escape(item.label).replace(".", ".<wbr>")
    return (
        f'<tr><th scope="row">{label}</th><td data-name="must">{escape(item.wanted)}</td>'
        f'<td>{seen}</td><td class="num" data-name="checked">{item.n_checked:,}</td>'
        f'<td><span class="tag {mood}">{_SEVERITY[item.severity]}</span></td></tr>'
    )


def _rejected(report: CheckReport) -> str:
    """The first rejected rows, the columns of the broken rules before the others."""
    rows = report.rejected.head(MOST_ROWS)
    columns = [name for name in rows.columns if name not in ("reason", "rules")]
    broken = {name for item in report.failed for name in (item.field, *item.field.split(","))}
    chosen = sorted(columns, key=lambda name: name not in broken)[:_MOST_COLUMNS]
    head = "<th>Reason</th>" + "".join(f"<th>{escape(name)}</th>" for name in chosen)
    lines = []
    for row in rows.iter_rows(named=True):
        cells = "".join(_cell(name, row[name]) for name in chosen)
        more = f" (and {len(row['rules']) - 1} more)" if len(row["rules"]) > 1 else ""
        lines.append(f"<tr><td>{escape(row['reason'])}{more}</td>{cells}</tr>")
    notes = []
    if report.n_rejected > MOST_ROWS:
        notes.append(f"the first {MOST_ROWS} of {report.n_rejected:,} rows")
    if len(columns) > len(chosen):
        notes.append(f"{len(chosen)} of {len(columns)} columns")
    note = f'<p class="soft small">Shown are {" and ".join(notes)}; quarantine has all.</p>' if notes else ""
    return (
        f'<div class="sheet"><div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></div>{note}"
    )


def _cell(name: str, value: object) -> str:
    text = "null" if value is None else str(value)
    text = text if len(text) <= _LONGEST_CELL else text[:_LONGEST_CELL] + "..."
    near = ' class="near"' if len(text) <= 16 else ""
    return f'<td{near} data-name="{escape(name)}">{escape(text)}</td>'
