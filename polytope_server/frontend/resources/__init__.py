"""One module per noun; each resource only translates between HTTP and a call."""
