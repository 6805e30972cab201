"""Does the search find better models, and where does the gain come from: systems of one size over seeds and tasks."""
