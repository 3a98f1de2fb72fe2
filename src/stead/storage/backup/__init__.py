"""Backups of disks: the repository's format, what writes and reads it, and what decides how long points are kept.

`docs/decisions/0016-backup-repository.md` says why the format is as it is. Nothing here knows machines or hypervisors.
"""
