"""Show finished runs: what each reached, beside the published figures, and what it cost.

    python report.py experiments                     print the tables
    python report.py experiments --out report        also write a page, report.html, with pictures, and report.csv
    python report.py --cost                          print what the published pairs cost, without training

FOLDER is a run's folder, or holds such folders at any depth. Runs that differ in the seed alone are one row: their mean
± the standard deviation of the sample.
"""

import os
import signal
import sys

from reporting import tables
from reporting.groups import make_tables
from reporting.runs import find
from utils import Parser, as_path, run_main


def make_parser() -> Parser:
    parser = Parser("report.py", __doc__)
    add = parser.add_argument
    add("folders", nargs="*", type=as_path, metavar="FOLDER", help="folders of runs, or folders that hold such")
    add("--out", type=as_path, metavar="DIR", help="write the page, the pictures and report.csv to this folder")
    add("--cost", action="store_true", help="print what the published pairs cost, without training anything")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    if args.cost:
        print(tables.aligned(tables.cost_table()))
        return
    if not args.folders:
        parser.error("name a FOLDER, or --cost")
    runs, passed_over = find(args.folders)
    for line in passed_over:
        print(line, file=sys.stderr)
    found = make_tables(runs)
    for table in found:
        print(f"## {table.title}\n\n{tables.aligned(tables.cells(table))}\n")
    if not found:
        sys.exit("error: none of these folders holds a finished run")
    if args.out:
        os.environ["MPLBACKEND"] = "agg"  # a notebook sets one with which matplotlib may refuse to be imported
        from reporting import figures  # only here: the tables need no matplotlib

        args.out.mkdir(parents=True, exist_ok=True)
        pictures = figures.draw(found, args.out)
        tables.write_csv(found, args.out / "report.csv")
        tables.write_page(found, pictures, args.out / "report.html")
        print(f"written: {args.out / 'report.html'}, and beside it report.csv and {len(pictures)} pictures")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it without an error
    run_main(main)
