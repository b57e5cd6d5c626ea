"""Claims, run files, verdicts and reports: everything that judges a measurement, none of it needs torch."""
