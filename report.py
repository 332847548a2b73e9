"""Finished runs as the paper's table and as pictures: what each reached, and what it cost.

    python report.py experiments                     a short table
    python report.py experiments --out report        also report.html, report.md, report.csv and pictures there
    python report.py --cost                          what the published pairs cost, without training

Takes folders of runs, or folders that hold such. Runs that differ in the seed alone are one row, as mean ± standard
deviation of the sample, whatever precision --precision auto chose for each.
"""

import csv
import sys

from reporting import tables
from reporting.groups import group, sections, shared_settings
from reporting.results import find
from utils import Parser, as_path, run_main


def make_parser():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("folders", nargs="*", type=as_path, metavar="FOLDER", help="folders of runs, or folders that hold such")
    add("--out", type=as_path, metavar="DIR", help="write the whole report there (only a table is printed)")
    add("--data-root", type=as_path, metavar="DIR", help="of cifar-100-python/, for pictures (what each run says)")
    add("--cost", action="store_true", help="print what the published pairs cost, without training anything")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.cost:
        return print(tables.aligned(tables.cost_table()))
    if not args.folders:
        parser.error("which FOLDER? or --cost")
    runs, passed_over = find(args.folders)
    for line in passed_over:
        print(line, file=sys.stderr)
    groups, unfinished = group(runs), [tables.progress(run) for run in runs if run.result is None]
    found = [(section, [tables.row(section, *of) for of in section.named]) for section in sections(groups)]
    every_row = [row for _, rows in found for row in rows]
    if every_row:
        print(tables.aligned(tables.table(every_row, tables.IN_A_TERMINAL)))
    for folder, done, best in unfinished:
        print(f"unfinished: {folder}, epoch {done}" + (f", best {best} % so far" if best else ""))
    if not every_row:
        sys.exit("error: none of these folders holds a finished run")
    if args.out:
        from reporting import figures, galleries  # only here: the table needs no matplotlib

        args.out.mkdir(parents=True, exist_ok=True)
        best = galleries.best_selecting(groups, args.data_root)
        pictures = figures.draw([section for section, _ in found], best, args.out, args.data_root)
        content = {"sections": found, "groups": groups, "shared": shared_settings(groups), "unfinished": unfinished}
        for form in ("md", "html"):
            text = tables.document(form, pictures=pictures, best=best, **content)
            (args.out / f"report.{form}").write_text(text, encoding="utf-8")
        with (args.out / "report.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, every_row[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(every_row)
        print(f"written: {args.out / 'report.html'}, with report.md, report.csv and {len(pictures)} pictures beside it")


if __name__ == "__main__":
    run_main(main)
