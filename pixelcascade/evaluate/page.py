"""A report as one HTML file that needs no network: text, tables, plots and sheets of pictures.

page = Page("emoji on data/emoji")
page.section("End to end", "Against 256 held-out pictures.")
page.table(["stage", "KID"], [["base", "0.0123 ± 0.0004"]], note="Lower is better.")
page.write(Path("report.html"))
"""

import base64
import html
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

Cell = str | float | int | None


@dataclass(frozen=True)
class Shown:
    """A picture of a sheet: its file, what is said under it, and the side that it is stored with at most."""

    path: Path
    caption: str = ""
    most: int = 256


class Page:
    """Parts in the order in which they are added; pictures are read when the page is written, one at a time."""

    def __init__(self, title: str, summary: str = ""):
        self.title, self.summary = title, summary
        self._parts: list[Callable[[], Iterator[str]]] = []
        self._sections: list[str] = []

    def section(self, title: str, text: str = "") -> None:
        number = len(self._sections)
        self._sections.append(title)
        self._add(f'<h2 id="s{number}">{_safe(title)}</h2>' + (f"<p>{_safe(text)}</p>" if text else ""))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], note: str = "") -> None:
        """Numbers are shown with four digits, None as a dash; all but the first column are set to the right."""
        head = "".join(f"<th scope=col>{_safe(name)}</th>" for name in columns)
        body = "".join(
            f"<tr><th scope=row>{_safe(_text(first))}</th>"
            + "".join(f"<td>{_safe(_text(cell))}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in rows
        )
        caption = f"<figcaption>{_safe(note)}</figcaption>" if note else ""
        self._add(
            f"<figure class=table><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{caption}</figure>"
        )

    def plot(self, figure: Any, note: str) -> None:
        """A matplotlib figure, as a vector drawing."""
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
        data = base64.b64encode(drawing.getvalue().encode()).decode()
        self._add(
            f'<figure><img class=plot src="data:image/svg+xml;base64,{data}" alt="{_safe(note)}">'
            f"<figcaption>{_safe(note)}</figcaption></figure>"
        )

    def pictures(self, shown: Iterable[Shown], note: str = "") -> None:
        """A grid; a click enlarges. Pictures above `most` pixels are stored smaller."""
        rows = list(shown)

        def lines() -> Iterator[str]:
            yield "<figure><div class=sheet>"
            for each in rows:
                yield f"<figure>{_button(each)}<figcaption>{_safe(each.caption)}</figcaption></figure>"
            yield f"</div>{f'<figcaption>{_safe(note)}</figcaption>' if note else ''}</figure>"

        self._parts.append(lines)

    def grid(self, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Shown]]], note: str = "") -> None:
        """Pictures under the columns' names and beside the rows'."""
        kept = list(rows)

        def lines() -> Iterator[str]:
            head = "".join(f"<th scope=col>{_safe(name)}</th>" for name in columns)
            yield f"<figure class=table><table class=grid><thead><tr><td></td>{head}</tr></thead><tbody>"
            for name, shown in kept:
                cells = "".join(f"<td>{_button(each)}</td>" for each in shown)
                yield f"<tr><th scope=row>{_safe(name)}</th>{cells}</tr>"
            yield f"</tbody></table>{f'<figcaption>{_safe(note)}</figcaption>' if note else ''}</figure>"

        self._parts.append(lines)

    def strip(self, name: str, text: str, shown: Iterable[Shown]) -> None:
        """Pictures of one thing in a row, beside its name and what is said of it; below them where there is no room."""
        kept = list(shown)

        def lines() -> Iterator[str]:
            under = f"<span>{_safe(text)}</span>" if text else ""
            yield f"<figure class=strip><figcaption>{_safe(name)}{under}</figcaption><div>"
            for each in kept:
                yield _button(each)
            yield "</div></figure>"

        self._parts.append(lines)

    def details(self, title: str, data: Any) -> None:
        """JSON that can be unfolded."""
        text = json.dumps(data, indent=2, ensure_ascii=False)
        self._add(f"<details><summary>{_safe(title)}</summary><pre>{_safe(text)}</pre></details>")

    def write(self, path: Path) -> None:
        """In one piece or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(self._lines())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _add(self, text: str) -> None:
        self._parts.append(lambda: iter([text]))

    def _lines(self) -> Iterator[str]:
        links = "".join(f'<li><a href="#s{k}">{_safe(title)}</a></li>' for k, title in enumerate(self._sections))
        yield (
            f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{_safe(self.title)}</title>"
            f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
            f"<main><h1>{_safe(self.title)}</h1><p class=summary>{_safe(self.summary)}</p><nav><ul>{links}</ul></nav>\n"
        )
        for part in self._parts:
            for line in part():
                yield line + "\n"
        yield f"</main><dialog><img alt=''><p></p></dialog><script>{_SCRIPT}</script></body></html>\n"


def _button(shown: Shown) -> str:
    """The picture, which a click enlarges."""
    source, small = stored(shown)
    return (
        f'<button type=button aria-label="enlarge"><img{" class=pixels" if small else ""} loading=lazy src="{source}" '
        f'alt="{_safe(shown.caption or "a picture")}"></button>'
    )


def stored(shown: Shown) -> tuple[str, bool]:
    """A data URI, and whether the picture is so small that its pixels are to be seen."""
    with PIL.Image.open(shown.path, formats=["PNG", "WEBP", "JPEG"]) as picture:
        picture = picture.convert("RGB")
    small = max(picture.size) <= 96
    if max(picture.size) > shown.most:
        picture.thumbnail((shown.most, shown.most), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=small, quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", small


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


STYLE = """
:root{color-scheme:light dark;--ink:#1d2329;--faint:#5b6570;--line:#d8dde3;--ground:#fff;--card:#f5f7f9;
--accent:#1f5a94}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebef;--faint:#a4afba;--line:#39424c;--ground:#14181c;--card:#1d2329;
--accent:#8fbfee}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:70rem;margin:0 auto;padding:1.5rem 1rem 4rem}h1{font-size:1.9rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.6rem 0 .4rem;padding-top:.6rem;border-top:1px solid var(--line)}p{max-width:46rem}
.summary{font-size:1.1rem}nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;list-style:none}
a{color:var(--accent)}figure{margin:1rem 0}figcaption{color:var(--faint);font-size:.86rem;max-width:46rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .8rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
thead th{border-bottom-width:2px;font-weight:600}th:first-child{text-align:left}tbody th{font-weight:500}
.plot{max-width:100%;background:#fff;border-radius:6px;padding:.4rem}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(7.5rem,1fr));gap:.7rem}.sheet figure{margin:0}
:is(.sheet,.grid,.strip) button{all:unset;cursor:zoom-in;display:block;width:100%}
:is(.sheet,.grid,.strip) button:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.grid th,.grid td{white-space:normal;padding:.2rem;border:0;vertical-align:bottom;font-size:.8rem;line-height:1.25}
.grid thead th{text-align:left;max-width:7rem;font-weight:500}.grid tbody th{min-width:7rem;max-width:11rem;
font-weight:400;vertical-align:middle;position:sticky;left:0;background:var(--ground)}
.grid img{width:6rem;display:block;border-radius:4px;background:var(--card)}
.sheet img{width:100%;display:block;border-radius:6px;background:var(--card)}.pixels{image-rendering:pixelated}
.sheet figcaption{font-size:.76rem;line-height:1.3;margin-top:.25rem;overflow-wrap:anywhere}
.strip{display:grid;grid-template-columns:minmax(11rem,20rem) 1fr;gap:.3rem 1.2rem;margin:.9rem 0;align-items:center}
.strip figcaption{color:var(--ink);font-size:.95rem;line-height:1.35}.strip span{display:block;color:var(--faint)}
.strip div{display:grid;grid-template-columns:repeat(auto-fill,minmax(5rem,9rem));gap:.5rem}
.strip img{width:100%;display:block;border-radius:6px;background:var(--card)}
@media(max-width:40rem){.strip{grid-template-columns:1fr;margin:1.4rem 0}
.strip div{grid-template-columns:repeat(auto-fill,minmax(5rem,1fr))}th,td{padding:.3rem .4rem;font-size:.8rem}}
dialog{border:0;border-radius:8px;background:var(--card);color:var(--ink);max-width:96vw}
dialog::backdrop{background:#000a}dialog img{width:min(80vh,90vw);display:block}dialog p{margin:.5rem 0 0}
details{margin:1.5rem 0}pre{background:var(--card);padding:1rem;overflow-x:auto;font-size:.8rem;border-radius:6px}
@media print{details,dialog{display:none}.sheet{grid-template-columns:repeat(6,1fr)}.strip{break-inside:avoid}}
"""
_SCRIPT = """
const box=document.querySelector('dialog');
const all=document.querySelectorAll(':is(.sheet,.grid,.strip) button');
all.forEach(button=>button.addEventListener('click',()=>{
const from=button.querySelector('img'),to=box.querySelector('img');to.src=from.src;to.alt=from.alt;
to.className=from.className;box.querySelector('p').textContent=from.alt;box.showModal()}));
box.addEventListener('click',()=>box.close());
"""
