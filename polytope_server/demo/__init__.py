"""A small real archive, a server on it, and a user who tries both."""
