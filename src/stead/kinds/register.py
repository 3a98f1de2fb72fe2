"""The register of kinds: one `Resource` for each kind that Stead serves, found by kind or by plural.

Placeholder until the typed modules land.
"""
