"""The report of a plan: one JSON document, and the HTML page and Markdown made from it."""
