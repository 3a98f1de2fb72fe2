"""Stead: virtual machines on metal that people own, declared with KubeVirt's API."""

__version__ = "0.1.0"
