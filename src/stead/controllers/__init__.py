"""What makes declarations true across hosts: one module per kind, each a pure `decide` and a thin `reconcile`."""
