"""Serving: a cascade behind HTTP, and single stages on other machines. Needs the extra `serve`."""
