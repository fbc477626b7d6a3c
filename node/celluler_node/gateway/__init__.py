"""HTTP over `Operations`: health, metrics, `/api/v1`, and what OpenAI's and KServe's clients ask.

Reference: docs/reference/http.md

Knows neither peers nor protocols nor how the node does what it is asked.
"""
