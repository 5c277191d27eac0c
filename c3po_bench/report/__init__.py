"""The report: one self-contained HTML file, figures and tables, made from a store alone."""
