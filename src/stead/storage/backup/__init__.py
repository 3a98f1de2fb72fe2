"""Backups of disks: the repository's format, what writes and reads it, and what decides how long points are kept.

`docs/decisions/0030-backup-repository.md` says why the format is as it is. Nothing here knows machines or hypervisors.
"""
