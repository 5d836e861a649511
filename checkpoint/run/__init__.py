"""One run over one namespace: load its cursors, change them, commit what changed."""
