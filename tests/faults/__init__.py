"""Damage done for real: kills, full disks, hostile files, bad networks, dead ranks. The list: docs/reliability.md."""
