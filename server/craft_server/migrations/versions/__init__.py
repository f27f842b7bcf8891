"""One module a revision, each immutable once released."""
