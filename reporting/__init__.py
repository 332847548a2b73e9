"""The parts of report.py: reading runs, grouping and naming them, the tables, the pictures."""
