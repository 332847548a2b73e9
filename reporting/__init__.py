"""What report.py is made of: runs found and read, grouped and compared with the published ones, and drawn."""
