"""HTTP on loopback over `Operations`: health, metrics and `/api/v1`. Reference: docs/reference/http.md

Knows neither peers nor protocols nor how the node does what it is asked.
"""
