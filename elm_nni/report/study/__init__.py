"""The report of a study: what was tried, what was best, what the keys do."""
