"""From the numbers of a sweep to a page: what is best, the curve, a table, the pictures side by side."""

from typing import Any

from pixelcascade.evaluate.page import Page, Shown
from pixelcascade.evaluate.report import JSON, REPORT, percent, with_error, write_json
from pixelcascade.evaluate.sweep import Point, Sweep

COLOURS = ("#1f5a94", "#b3541e", "#3c7d3c", "#7a4a9e", "#8a6d1f", "#5b6570")


def write_sweep(asked: Sweep, numbers: dict[str, Any], out) -> None:
    """report.json and report.html; the page needs nothing but itself."""
    write_json(out / JSON, numbers)
    page_of(asked, numbers).write(out / REPORT)


def page_of(asked: Sweep, numbers: dict[str, Any]) -> Page:
    found, best = numbers["points"], numbers["points"][numbers["best"]]
    page = Page(
        f"{numbers['model']}: settings of {numbers['stage']}",
        f"{len(found)} combinations, {numbers['pictures']} pictures each, of the same prompts and seeds. "
        f"Words are judged by {numbers['pair']}, distances are of {numbers['extractor']}'s features.",
    )
    for note in numbers["notes"]:
        page.section("What could not be measured", f"{note[0].upper()}{note[1:]}.")
    page.section("The best", f"{best['name']}. {_reason(numbers)}")
    page.section(
        "Words against looks",
        "Guidance pulls pictures to their words, and away from real pictures. What is up and to the left of another "
        "combination is better than it in both; those that none is better than are ringed.",
    )
    page.plot(_plot(numbers), "Match of words and distance from real pictures, each with its standard error.")
    rows = [
        [
            each["name"] + (" (best)" if index == numbers["best"] else ""),
            with_error(each["score"]),
            percent(each["r_precision"]),
            with_error(each["kid"]),
            f"{each['saturated']:.1%}",
            each["calls"],
            "yes" if index in numbers["front"] else None,
        ]
        for index, each in enumerate(found)
    ]
    page.table(
        ["settings", "score", "R-precision", "KID", "saturated", "calls", "ringed"],
        rows,
        "Score: 2.5 x cosine, as CLIPScore has it. Calls: of the stage's network, for one picture.",
    )
    page.section("Pictures", "The first prompts, with the same seed in each row: nothing is chosen.")
    points = [Point(**{key: each[key] for key in Point._fields}) for each in found]
    page.grid(
        [str(point) for point in points],
        [
            (
                asked.prompts[row],
                [
                    Shown(asked.samples(point).path(asked.last.name, row), f"{asked.prompts[row]}: {point}")
                    for point in points
                ],
            )
            for row in range(asked.shown)
        ],
    )
    page.section("All numbers")
    page.details("report.json", numbers)
    return page


def _reason(numbers: dict[str, Any]) -> str:
    if numbers["points"][numbers["best"]]["kid"] is None:
        return "It has the highest score."
    return "Of the ringed ones it is nearest to the corner of the highest score and the lowest KID."


def _plot(numbers: dict[str, Any]) -> Any:
    """A curve for each combination of the other settings, through the values of guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    found = numbers["points"]
    measured = found[0]["kid"] is not None
    curves: dict[tuple, list[int]] = {}
    for index, each in enumerate(found):
        curves.setdefault((each["aug_snr"], each["steps"], each["sampler"], each["guide"]), []).append(index)
    for number, (rest, members) in enumerate(curves.items()):
        across = [(found[k]["kid"] if measured else [found[k]["guidance"] or 0.0, 0.0]) for k in members]
        scores = [found[k]["score"] for k in members]
        axes.errorbar(
            [pair[0] for pair in across],
            [pair[0] for pair in scores],
            xerr=[pair[1] for pair in across],
            yerr=[pair[1] for pair in scores],
            fmt="o-",
            color=COLOURS[number % len(COLOURS)],
            linewidth=1,
            elinewidth=0.6,
            label=str(Point(None, *rest)),
        )
        for k, x, y in zip(members, across, scores, strict=True):
            if found[k]["guidance"] is not None:
                axes.annotate(f"{found[k]['guidance']:g}", (x[0], y[0]), (4, 4), textcoords="offset points", fontsize=8)
            if k in numbers["front"]:
                axes.plot(x[0], y[0], "o", markersize=12, fillstyle="none", color="#1d2329")
    axes.set(xlabel=f"KID, {numbers['extractor']}" if measured else "guidance", ylabel=f"score, {numbers['pair']}")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8)
    return figure
