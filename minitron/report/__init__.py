"""What is told of a plan: one JSON document, and the page and the Markdown made of it."""
