"""Finished runs as the paper's table and as pictures: what each reached, and what it cost.

    python report.py experiments                     a short table
    python report.py experiments --out report        also report.html, report.md, report.csv and pictures there
    python report.py --cost                          what the published pairs cost, without training

Takes folders of runs, or folders that hold such. Runs that differ in the seed alone are one row, as mean ± standard
deviation of the sample.
"""

import argparse
import base64
import csv
import html
import io
import sys
from pathlib import Path

from cost import computation, forward_macs
from run import write_file

from reporting import published
from reporting.groups import group, kd_of, label, of_kd, sections, shared_words
from reporting.results import find
from utils import entry

# ---------------------------------------------------------------------------------------------------------- tables


def aligned(rows):
    """A Markdown table whose columns line up. rows: of strings, the first one the header."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows)


def number(value, digits=2, sign=""):
    return "" if value is None else f"{value:{sign}.{digits}f}"


def accuracy(g, name):
    """Mean ± standard deviation over the seeds, the mean alone for one."""
    return number(g.mean(name)) + (f" ± {g.spread(name):.2f}" if g.spread(name) is not None else "")


def short_table(groups):
    """The table for a terminal: a row a group, cost and time also relative to KD's."""
    rows = [("network", "method", "best %", "last %", "images the teacher saw", "computation", "training")]
    common = shared_words(groups)
    for g in groups:
        kd = kd_of(g, groups)
        method, *settings = label(g, common).split(", ")
        name = ", ".join([f"{method} from {g.teacher}" if g.teacher else method, *settings])
        cells = [g.network, f"{name} ({len(g.runs)} seeds)" if len(g.runs) > 1 else name]
        cells += [accuracy(g, "best_acc"), accuracy(g, "last_acc")]
        for column, text in (
            ("teacher_queries", f"{g.mean('teacher_queries'):,.0f}"),
            ("train_macs", f"{g.mean('train_macs') / 1e12:.2f} TMAC"),
            ("train_seconds", f"{g.mean('train_seconds'):.1f} s"),
        ):
            percent = of_kd(g, kd, column)
            cells.append(text if percent is None else f"{text} ({percent:.0f} % of KD)")
        rows.append(cells)
    return aligned(rows)


FULL = (  # columns of report.md and report.html; empty ones are left out
    ("method", "method"),
    ("seeds", "seeds"),
    ("best", "best %"),
    ("last", "last %"),
    ("test_best", "test %, best epoch"),
    ("test_last", "test %, last epoch"),
    ("published", "published %"),
    ("difference", "difference"),
    ("computation", "computation, % of KD"),
    ("computation_usual", "same, backward = 2 forwards"),
    ("tmac", "TMAC"),
    ("time", "time, % of KD"),
    ("seconds", "training, s"),
)


def computation_of(g, kd, name):
    """In percent of KD's: as the runs have it, else from the operations of `kd`. None where neither tells."""
    own = g.mean(name)
    return 100 * own if own is not None else of_kd(g, kd, name.replace("computation", "train_macs"))


def full_rows(section, groups):
    """The section's rows as {column: number, text or None}."""
    for name, g in section.rows:
        kd = kd_of(g, groups)
        best = g.mean("best_acc")
        yield {
            "method": name,
            "seeds": len(g.runs),
            "best": best,
            "best_std": g.spread("best_acc"),
            "last": g.mean("last_acc"),
            "last_std": g.spread("last_acc"),
            "test_best": g.mean("test_acc_best"),
            "test_best_std": g.spread("test_acc_best"),
            "test_last": g.mean("test_acc_last"),
            "test_last_std": g.spread("test_acc_last"),
            "published": g.published,
            "difference": None if g.published is None else best - g.published,
            "computation": computation_of(g, kd, "computation"),
            "computation_usual": computation_of(g, kd, "computation_usual"),
            "tmac": g.mean("train_macs") / 1e12,
            "time": of_kd(g, kd, "train_seconds"),
            "seconds": g.mean("train_seconds"),
            "command": g.command,
        }


def full_table(section, groups):
    """[header, row, ...] of strings, without the columns in which nothing stands."""
    rows = list(full_rows(section, groups))
    columns = [(name, title) for name, title in FULL if any(row[name] is not None for row in rows)]
    return [[title for _, title in columns], *([cell(row, name) for name, _ in columns] for row in rows)]


def cell(row, name):
    value, spread = row[name], row.get(f"{name}_std")
    if value is None or name in ("method", "seeds"):
        return "" if value is None else str(value)
    digits = 1 if name in ("time", "seconds") else 2
    return number(value, digits, "+" if name == "difference" else "") + (
        f" ± {spread:.2f}" if spread is not None else ""
    )


def csv_text(found, groups):
    """A line a row of the tables, numbers in full."""
    text, writer = io.StringIO(), None
    for section in found:
        for row in full_rows(section, groups):
            row = {"teacher": section.teacher, "student": section.student, "setting": ", ".join(section.words), **row}
            if writer is None:
                writer = csv.DictWriter(text, row, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
    return text.getvalue()


def teacher_line(section):
    """What is known of the teacher that was distilled from."""
    if section.teacher_acc is None:
        return ""
    comparable = any(g.teacher and g.published for _, g in section.rows)
    pair = published.PAIRS[section.teacher, section.student] if comparable else None
    stated = f" (published: {pair.teacher:.2f} %)" if pair and pair.teacher else ""
    return f"The teacher, {section.teacher}, has {section.teacher_acc:.2f} % on the validation images{stated}."


# -------------------------------------------------------------------------------------------------------- documents

NOTES = (
    "Accuracies are top-1 in percent, mean ± standard deviation (of the sample) over the seeds. The best epoch is "
    "chosen on the validation images, which without --holdout are the test images, so best is a little optimistic. "
    "Published figures (means of 4 runs, best epoch) stand only beside runs of the published recipe.",
    "Computation is of convolutions and linear layers, relative to ordinary KD of the same pair, counting backward as "
    "one forward pass as the paper does, and as two as is usual. TMAC: 10¹² multiply-accumulates of the whole "
    "training, backward as one forward. Time is measured, and compared only on the same device in the same precision.",
)


def blocks(found, groups, unfinished, pictures):
    """The report as a list of ("h1" | "h2" | "p" | "table" | "code" | "picture", content), for either document."""
    yield "h1", "Report"
    count, settings = sum(len(g.runs) for g in groups), ", ".join(shared_words(groups))
    yield "p", f"Finished runs: {count}. Settings of all, beside the published ones: {settings or 'none'}."
    for note in NOTES:
        yield "p", note
    for section in found:
        yield "h2", section.title
        if teacher_line(section):
            yield "p", teacher_line(section)
        yield "table", full_table(section, groups)
        yield "p", "To repeat the rows, in order:"
        yield "code", "\n".join(g.command for _, g in section.rows)
    if unfinished:
        yield "h2", "Unfinished"
        yield "table", [("run", "epochs done", "best % so far"), *map(progress, unfinished)]
    if pictures:
        yield "h2", "Pictures"
    for path, caption in pictures:
        yield "picture", (path, caption)


def progress(run):
    """An unfinished run as (folder, "57 of 240", best accuracy so far)."""
    accuracies = run.metrics.get("val/cls_acc", [])
    best = f"{max(accuracies):.2f}" if accuracies else ""
    return str(run.folder), f"{len(accuracies)} of {run.settings['epoch']}", best


def markdown(content):
    form = {
        "h1": "# {}".format,
        "h2": "## {}".format,
        "p": str,
        "table": aligned,
        "code": "```bash\n{}\n```".format,
        "picture": lambda picture: f"![{picture[1]}]({picture[0].name})\n\n{picture[1]}",
    }
    return "\n\n".join(form[kind](what) for kind, what in content) + "\n"


STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid #bbb; padding: .25rem .6rem; text-align: right; vertical-align: bottom; }
th { border-bottom: 2px solid #000; font-weight: 600; }
td { white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; background: #f2f2f2; padding: .6rem; font-size: 13px; }
figure { margin: 2rem 0; }
img { max-width: 100%; }
"""


def html_table(rows):
    header, *rows = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def html_picture(picture):
    path, caption = picture
    data, caption = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def page(content):
    """One HTML file that needs no other."""
    form = {
        "h1": lambda text: f"<h1>{html.escape(text)}</h1>",
        "h2": lambda text: f"<h2>{html.escape(text)}</h2>",
        "p": lambda text: f"<p>{html.escape(text)}</p>",
        "table": html_table,
        "code": lambda text: f"<pre>{html.escape(text)}</pre>",
        "picture": html_picture,
    }
    body = "\n".join(form[kind](what) for kind, what in content)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


# ------------------------------------------------------------------------------------------------------------- cost


def cost_table():
    """Operations of the published pairs, and UNIX's (k 48 of 64) relative to KD's in both countings."""
    rows = [("teacher", "student", "Ft, MMAC", "Fs, MMAC", "Ft/Fs", "UNIX, % of KD", "published", "backward = 2")]
    macs = {arch: forward_macs(arch) for arch in {arch for pair in published.PAIRS for arch in pair}}
    for (teacher, student), pair in published.PAIRS.items():
        ft, fs = macs[teacher], macs[student]
        figures = (ft / 1e6, fs / 1e6, ft / fs, 100 * computation(fs, ft, 48, 64), pair.computation)
        usual = 100 * computation(fs, ft, 48, 64, backward=2)
        rows.append((teacher, student, *map(number, figures), number(usual)))
    return aligned(rows)


# ---------------------------------------------------------------------------------------------------------- program


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, metavar="FOLDER", help="folders of runs, or folders that hold such")
    add("--out", type=Path, metavar="DIR", help="write the whole report there (only a table is printed)")
    add("--data-root", type=Path, metavar="DIR", help="where cifar-100-python/ lies, for pictures (what each run says)")
    add("--cost", action="store_true", help="print what the published pairs cost, without training anything")
    return parser


def main(argv=None):
    parser = flags()
    args = parser.parse_args(argv)
    if args.cost:
        print(cost_table())
    elif not args.folders:
        parser.error("which FOLDER? or --cost")
    else:
        report(args)


def report(args):
    runs, passed_over = find(args.folders)
    for line in passed_over:
        print(line, file=sys.stderr)
    groups = group(runs)
    unfinished = [run for run in runs if run.result is None]
    if groups:
        print(short_table(groups))
    for folder, done, best in map(progress, unfinished):
        print(f"unfinished: {folder}, epoch {done}" + (f", best {best} % so far" if best else ""))
    if not groups:
        sys.exit("error: none of these folders holds a finished run")
    if args.out:
        write_report(args, groups, unfinished)


def write_report(args, groups, unfinished):
    from reporting import figures  # only here: the table needs no matplotlib

    found = sections(groups)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = figures.draw(found, groups, args.out, args.data_root)
    content = list(blocks(found, groups, unfinished, pictures))
    for name, text in (
        ("report.md", markdown(content)),
        ("report.csv", csv_text(found, groups)),
        ("report.html", page(content)),
    ):
        write_file(args.out / name, text.encode())
    print(f"written: {args.out / 'report.html'}, with report.md, report.csv and {len(pictures)} pictures beside it")


if __name__ == "__main__":
    entry(main)
