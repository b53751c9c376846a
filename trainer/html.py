"""HTML pages in one file: text, tables and SVG figures, without external resources."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 13px }}
th, td {{ padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd }}
th {{ border-bottom: 2px solid #888 }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums }}
svg {{ max-width: 100%; height: auto; display: block; margin: 1em 0 }}
.big {{ font-size: 26px; font-weight: 600 }} .muted {{ color: #666 }}
</style></head><body>
<h1>{title}</h1><p class="big">{headline}</p>{body}
</body></html>
"""


def page(title: str, headline: str, lines: Sequence[str], *parts: str) -> str:
    """Return a page: title, headline, `lines` as paragraphs of plain text, then `parts`, which are HTML."""
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return PAGE.format(title=html.escape(title), headline=html.escape(headline), body=paragraphs + "".join(parts))


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table below its title. A column in which every value is a number is aligned to the right."""
    is_numeric = [all(row[column][:1] in "0123456789+-" for row in rows) for column in range(len(headings))]

    def html_row(tag: str, values: Sequence[str]) -> str:
        cells = (
            f"<{tag}{' class=n' if numeric else ''}>{html.escape(value)}</{tag}>"
            for value, numeric in zip(values, is_numeric, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(html_row("td", row) for row in rows)
    return f"<h2>{html.escape(title)}</h2><table>{html_row('th', headings)}{body}</table>"


def svg(figure: Figure) -> str:
    """Return the figure as an <svg> element."""
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    return text[text.index("<svg") :]
