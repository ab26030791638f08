"""The REST frontend: HTTP in, a call of a back-end, HTTP out."""
