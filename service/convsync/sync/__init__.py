"""The sync engine: reads a Page's conversations through the Graph API until the mirror is whole.

PostgreSQL decides (what to read next, when to call, what state a run is in); Python calls. `ports`
says what it needs of the database and of Graph, `calls` makes one granted call, `walker` carries the
work of one run, `runner` holds the lease around it.
"""
