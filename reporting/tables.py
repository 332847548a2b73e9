"""The tables as Markdown for a terminal, as CSV, and on one page."""

import base64
import csv
from math import isnan, nan
from pathlib import Path
from statistics import mean

from engine.flops import cost_so_far, forward_macs
from models import model_dict
from reporting import published
from reporting.groups import Row, Table

COLUMNS = {  # of a printed table: (title, format)
    "row": ("", ""),
    "seeds": ("seeds", ""),
    "best_acc": ("best %", ".2f"),
    "last_acc": ("last %", ".2f"),
    "test_acc_best": ("test %, best epoch", ".2f"),
    "test_acc_last": ("test %, last epoch", ".2f"),
    "published": ("published %", ".2f"),
    "teacher_queries": ("images the teacher saw", ",.0f"),
    "computation": ("computation relative to KD", ".1%"),
    "computation_usual": ("backward = 2 forwards", ".1%"),
    "time": ("time relative to KD", ".1%"),
}


def values(table: Table, row: Row) -> dict[str, str | float]:
    """The columns of report.csv: the mean of each number and, as "..._std", its spread; nan where there is none.

    A row is compared with KD of the same teacher and as many epochs, run without --teacher-cache.
    """
    kds = [kd for kd in table.rows if kd.first.method == "KD" and "teacher_cache" not in kd.first.deviations]
    kds = [kd for kd in kds if kd.first.epochs == row.first.epochs]
    kd = next((kd for kd in kds if row.first.teacher_hash in ("", kd.first.teacher_hash)), None)
    numbers = {name: row.mean(name) for name in row.first.numbers}
    for suffix in ("", "_usual") if kd and row.first.method == "alone" else ():
        numbers[f"computation{suffix}"] = numbers[f"train_macs{suffix}"] / kd.mean(f"train_macs{suffix}")
    ratios = []
    for run in row.runs:  # each beside KD on the same machine
        seconds = [other.numbers["train_seconds"] for other in (kd.runs if kd else []) if other.machine == run.machine]
        ratios += [run.numbers["train_seconds"] / mean(seconds)] if seconds else []
    return {
        "table": table.title,
        "row": row.name,
        "seeds": len(row.runs),
        "published": row.first.published,
        "time": mean(ratios) if ratios else nan,
        **numbers,
        **{f"{name}_std": row.spread(name) for name in numbers if "acc" in name},
        "command": row.command,
    }


def cells(table: Table) -> list[list[str]]:
    """The table as it is printed, titles first, without the columns in which nothing stands."""
    rows = [values(table, row) for row in table.rows]
    lines = [[] for _ in range(1 + len(rows))]
    for name, (title, look) in COLUMNS.items():
        column = [cell(row[name], look, row.get(f"{name}_std", nan)) for row in rows]
        if any(column):
            for line, text in zip(lines, [title, *column]):
                line.append(text)
    return lines


def cell(value: str | float, look: str, spread: float) -> str:
    text = "" if value != value else format(value, look)
    return text if isnan(spread) else f"{text} ± {spread:.2f}"


def cost_table() -> list[list[str]]:
    """Operations of the published pairs, and UNIX's (k 48 of 64) relative to KD's in both countings."""
    lines = [["teacher", "student", "Ft, MMAC", "Fs, MMAC", "Ft/Fs", "UNIX, % of KD", "published", "backward = 2"]]
    macs = {arch: forward_macs(model_dict[arch]()) for arch in {arch for pair in published.pairs() for arch in pair}}
    for (teacher, student), pair in published.pairs().items():
        ft, fs = macs[teacher], macs[student]
        cost = cost_so_far(fs, 48, 64, ft, 48, 64)
        ours, usual = 100 * cost["computation"], 100 * cost["computation_usual"]
        figures = ft / 1e6, fs / 1e6, ft / fs, ours, pair["computation"], usual
        lines.append([teacher, student, *map("{:.2f}".format, figures)])
    return lines


def aligned(lines: list[list[str]]) -> str:
    """A Markdown table whose columns line up. The first line holds the titles."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in ruled)


def write_csv(tables: list[Table], path: Path) -> None:
    """Write a line for each row of the tables."""
    rows = [values(table, row) for table in tables for row in table.rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(map(csv_cell, row.values()) for row in rows)


def csv_cell(value: str | float) -> str:
    text = "" if value != value else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text  # or a spreadsheet takes it for a formula


def write_page(tables: list[Table], pictures: dict[Path, str], path: Path) -> None:
    """Write one HTML page that needs no other file. pictures: {PNG: caption}."""
    from jinja2 import Environment, FileSystemLoader  # only here: the terminal's tables do not need it

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters |= {"cells": cells, "base64": lambda png: base64.b64encode(png.read_bytes()).decode()}
    page = environment.get_template("report.jinja").render(tables=tables, pictures=pictures)
    path.write_text(page, encoding="utf-8")
