"""Damage done for real: kills, full disks, hostile files, failing networks and ranks. docs/reliability.md has the list."""
